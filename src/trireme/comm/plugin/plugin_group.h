// One group over c10d back ends of a device. Internal to comm/: knows c10d.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "trireme/comm/request_group.h"

namespace trireme::comm {

/// What the groups of one world share: their back ends, which an abort ends. Thread-safe.
class PluginSession {
 public:
  void add(const c10::intrusive_ptr<c10d::Backend>& backend);
  void remove(const c10::intrusive_ptr<c10d::Backend>& backend);
  /// Ends what is under way; the first reason stays.
  void abort(const std::string& reason);
  /// Why the run ends; empty: it does not.
  std::string reason() const;

 private:
  mutable std::mutex mutex_;
  std::string reason_;
  std::vector<c10::intrusive_ptr<c10d::Backend>> backends_;
};

/// The back ends of a group: two ranks that send to each other at once use one each, which some back ends need.
struct GroupBackends {
  c10::intrusive_ptr<c10d::Backend> collectives;
  c10::intrusive_ptr<c10d::Backend> up;    ///< to a rank after this one
  c10::intrusive_ptr<c10d::Backend> down;  ///< to a rank before it
};

/// A Group of two ranks or more. Transfers are issued to the back end behind what the issuing queue has; on a device that works
/// while the host goes on, nothing waits on the host.
class PluginGroup final : public RequestGroup {
 public:
  PluginGroup(std::vector<int> members, int rank, device::Device& device, GroupBackends backends,
              std::shared_ptr<PluginSession> session);
  ~PluginGroup() override;

 private:
  class Issued;
  Pending start(Request request, device::Queue& after) override;
  void issue(const Request& request, Issued& issued);

  const bool on_device_;  ///< the device works while the host goes on
  const GroupBackends backends_;
  const std::shared_ptr<PluginSession> session_;
};

}  // namespace trireme::comm
