// A world of which one rank alone is there, for tests of what a step holds: every transfer is done at once, and what others would
// send is what this rank sends, or zeros. Header only, for tests.
#pragma once

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "trireme/comm/group.h"

namespace trireme::execute {

class EchoGroup final : public comm::Group {
 public:
  EchoGroup(int rank, std::vector<int> members) : members_(std::move(members)) {
    rank_ = static_cast<int>(std::ranges::find(members_, rank) - members_.begin());
  }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  const std::vector<int>& members() const override { return members_; }

  Pending send(const at::Tensor& /*tensor*/, int /*to*/, device::Queue& /*after*/) override {
    return std::make_unique<Done>();
  }
  Pending receive(const at::Tensor& tensor, int /*from*/, device::Queue& /*after*/) override {
    tensor.zero_();
    return std::make_unique<Done>();
  }
  Pending all_to_all(const at::Tensor& out, const std::vector<int64_t>& /*out_counts*/,
                     const at::Tensor& /*in*/, const std::vector<int64_t>& /*in_counts*/,
                     device::Queue& /*after*/) override {
    out.zero_();
    return std::make_unique<Done>();
  }
  Pending all_gather(const at::Tensor& out, const std::vector<int64_t>& counts,
                     const at::Tensor& in, device::Queue& /*after*/) override {
    int64_t at = 0;
    for (size_t r = 0; r < counts.size(); ++r) {
      const at::Tensor piece = out.narrow(0, at, counts[r]);
      if (static_cast<int>(r) != rank_) {
        counts[r] == in.numel() ? piece.copy_(in) : piece.zero_();
      } else if (piece.data_ptr() != in.data_ptr()) {
        piece.copy_(in);
      }
      at += counts[r];
    }
    return std::make_unique<Done>();
  }
  Pending broadcast(const at::Tensor& /*tensor*/, int /*root*/, device::Queue& /*after*/) override {
    throw std::logic_error("no echo of a broadcast");
  }
  Pending all_reduce(const at::Tensor& /*tensor*/, device::Queue& /*after*/) override {
    throw std::logic_error("no echo of a sum");
  }
  Pending reduce_scatter(const at::Tensor& /*out*/, const at::Tensor& /*in*/,
                         const std::vector<int64_t>& /*counts*/,
                         device::Queue& /*after*/) override {
    throw std::logic_error("no echo of a sum");
  }
  comm::Traffic traffic() const override { return {}; }

 private:
  struct Done final : comm::Work {
    bool done() const override { return true; }
    void wait(device::Queue& /*queue*/) override {}
    double start_s() const override { return 0.0; }
    double end_s() const override { return 0.0; }
  };
  std::vector<int> members_;
  int rank_ = 0;
};

class EchoWorld final : public comm::World {
 public:
  EchoWorld(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string transport() const override { return "echo"; }
  std::string host(int /*rank*/) const override { return "here"; }
  std::unique_ptr<comm::Group> make_group(const std::vector<int>& members,
                                          device::Device& /*device*/) override {
    if (std::ranges::find(members, rank_) == members.end()) return nullptr;
    return std::make_unique<EchoGroup>(rank_, members);
  }
  std::vector<std::string> exchange(const std::string& bytes) override {
    return std::vector<std::string>(static_cast<size_t>(size_), bytes);
  }
  void barrier() override {}
  void abort(const std::string& /*reason*/) override {}

 private:
  int rank_;
  int size_;
};

}  // namespace trireme::execute
