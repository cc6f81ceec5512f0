// Which ATen operators are called with tensors of a device, who runs them there, and what those cost that run on the CPU.
//
// Asks PyTorch alone: its dispatcher says whether the device has a kernel of an operator, and its function recorder which
// operators are called, so that any device can be surveyed.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace trireme::device {

struct OperatorUse {
  enum class Where {
    kDevice,     ///< a kernel of the device
    kComposite,  ///< made of other operators, which are listed too
    kFallback,   ///< no kernel: the device's library runs it on the CPU
    kMissing     ///< no kernel and no fallback: an error in a run
  };
  std::string name;  ///< "aten::mm.out"
  Where where = Where::kDevice;
  int64_t calls = 0;
  double seconds =
      0;  ///< of the host, in calls that run on the CPU; 0 for others, which return before they are done
  int64_t bytes = 0;  ///< of the device's tensors in arguments and results of those calls
};
const char* to_string(OperatorUse::Where where);

/// Who would run an operator ("aten::mm.out") with tensors of this type of device. kMissing for an unknown one.
OperatorUse::Where where_operator_runs(const std::string& name, c10::DeviceType device);

/// Records, while it lives, what all threads call. Where the device has no fallback of its own, missing operators run on
/// the CPU meanwhile, so that one survey finds them all. One at a time in a process; make it, read it and destroy it from one
/// thread, with the device idle.
class OperatorSurvey {
 public:
  explicit OperatorSurvey(c10::DeviceType device);
  ~OperatorSurvey();
  OperatorSurvey(const OperatorSurvey&) = delete;
  OperatorSurvey& operator=(const OperatorSurvey&) = delete;

  /// Those on the CPU first, by their time; then by name.
  std::vector<OperatorUse> uses() const;

 private:
  class Recorder;
  std::unique_ptr<Recorder> recorder_;
};

}  // namespace trireme::device
