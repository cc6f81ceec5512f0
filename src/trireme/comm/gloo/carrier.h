// Transfers of one group over TCP. Internal to gloo/.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "trireme/comm/gloo/session.h"
#include "trireme/comm/serial_thread.h"
#include "trireme/comm/staged_group.h"

namespace gloo::transport {
class Device;
}  // namespace gloo::transport
namespace c10d {
class ProcessGroupGloo;
}  // namespace c10d

namespace trireme::comm {

/// A device that listens on the address of the options, shared by all groups of a rank. Throws Error{kConfig}.
std::shared_ptr<gloo::transport::Device> open_gloo_device(const GlooOptions& options);

/// Each transfer is made of sends and receives, which all of its peers' are posted before any is waited for: on one thread for
/// collectives, and on one for each peer and direction. What was not waited for ends with the carrier.
class GlooCarrier final : public Carrier {
 public:
  /// Blocks until all members are connected. `number` is the group's, the same on all ranks.
  GlooCarrier(std::shared_ptr<GlooSession> session, int64_t number, std::vector<int> members,
              int rank, std::shared_ptr<gloo::transport::Device> device);
  ~GlooCarrier() override;
  void start(const TransferRef& transfer) override;
  void wait(const TransferRef& transfer) override;

 private:
  /// Sends and receives under way, which an abort wakes.
  class Posted;
  using PostedRef = std::shared_ptr<Posted>;
  void run(const TransferRef& transfer, const PostedRef& posted);
  void exchange(const TransferRef& transfer, Posted& posted);
  void reduce(const TransferRef& transfer, Posted& posted);
  void post_send(Posted& posted, const TransferRef& transfer, int to, const char* data,
                 int64_t bytes, int tag);
  void post_receive(Posted& posted, const TransferRef& transfer, int from, char* data,
                    int64_t bytes, int tag);

  const std::shared_ptr<GlooSession> session_;
  const std::vector<int> members_;
  const int rank_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;

  std::mutex mutex_;
  std::map<const Transfer*, std::pair<TransferRef, PostedRef>> running_;
  SerialThread collectives_{"comm-gloo"};
  std::map<std::pair<int, TransferKind>, std::unique_ptr<SerialThread>> pairs_;
};

}  // namespace trireme::comm
