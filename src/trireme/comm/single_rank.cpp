#include <memory>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/comm/group.h"
#include "trireme/comm/staged_group.h"

namespace trireme::comm {
namespace {

class SingleRank final : public World {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string transport() const override { return "none"; }
  std::string host(int /*rank*/) const override { return this_host(); }
  std::unique_ptr<Group> make_group(const std::vector<int>& members,
                                    device::Device& device) override {
    check_members(members, 1);
    return std::make_unique<StagedGroup>(members, 0, device, nullptr);
  }
  std::vector<std::string> exchange(const std::string& bytes) override { return {bytes}; }
  void barrier() override {}
  void abort(const std::string& /*reason*/) override {}
};

}  // namespace

std::unique_ptr<World> single_rank() {
  return std::make_unique<SingleRank>();
}

}  // namespace trireme::comm
