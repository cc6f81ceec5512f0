// Collectives of a device of a third party, for tests: a c10d back end whose bytes go through the store that ranks meet at. It
// shares no code with Trireme but the header that it is built against. What a transfer brings comes when it is waited for, and
// not before: who forgets to wait computes with what was there.
//
// STORE_COLLECTIVES=sequential: without coalescing.
#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "trireme/comm/plugin/collectives.h"

namespace {

using Bytes = std::vector<uint8_t>;
using WorkRef = c10::intrusive_ptr<c10d::Work>;

class LateWork final : public c10d::Work {
 public:
  explicit LateWork(std::function<void()> rest) : rest_(std::move(rest)) {}
  bool isCompleted() override { return rest_ == nullptr; }
  bool wait(std::chrono::milliseconds /*timeout*/) override {
    if (auto rest = std::exchange(rest_, nullptr)) rest();
    return true;
  }

 private:
  std::function<void()> rest_;
};

WorkRef late(std::function<void()> rest) {
  return c10::make_intrusive<LateWork>(std::move(rest));
}

class StoreBackend final : public c10d::Backend {
 public:
  explicit StoreBackend(const trireme::comm::CollectivesRequest& request)
      : Backend(request.rank, request.size), store_(request.store), timeout_(request.timeout) {
    const char* mode = std::getenv("STORE_COLLECTIVES");
    coalesces_ = mode == nullptr || std::string(mode) != "sequential";
  }

  const std::string getBackendName() const override { return "store"; }
  bool supportsCoalescing() const override { return coalesces_; }
  void startCoalescing() override { coalesced_ = std::vector<WorkRef>(); }
  WorkRef endCoalescing() override {
    return late([works = std::exchange(coalesced_, std::nullopt)] {
      for (const WorkRef& work : *works) work->wait();
    });
  }
  void abort() override { aborted_ = true; }

  WorkRef broadcast(std::vector<at::Tensor>& tensors,
                    const c10d::BroadcastOptions& options) override {
    const int64_t number = next_++;
    const int root = static_cast<int>(options.rootRank);
    if (root == getRank()) {
      const Bytes bytes = read(tensors[0]);
      for (int to = 0; to < getSize(); ++to) {
        if (to != root) put(number, to, bytes);
      }
      return note(late([] {}));
    }
    return note(
        late([this, number, root, tensor = tensors[0]] { write(tensor, get(number, root)); }));
  }

  WorkRef allreduce(std::vector<at::Tensor>& tensors,
                    const c10d::AllreduceOptions& /*options*/) override {
    const int64_t number = next_++;
    send_to_all(number, read(tensors[0]));
    return late([this, number, tensor = tensors[0]] { write_sum(tensor, number, tensor); });
  }

  WorkRef reduce(std::vector<at::Tensor>& tensors, const c10d::ReduceOptions& options) override {
    const int64_t number = next_++;
    const int root = static_cast<int>(options.rootRank);
    if (root != getRank()) {
      put(number, root, read(tensors[0]));
      return late([] {});
    }
    return late([this, number, tensor = tensors[0]] { write_sum(tensor, number, tensor); });
  }

  WorkRef _allgather_base(at::Tensor& out, at::Tensor& in,
                          const c10d::AllgatherOptions& /*options*/) override {
    const int64_t number = next_++;
    const Bytes mine = read(in);
    send_to_all(number, mine);
    return late([this, number, out, mine] {
      Bytes all;
      for (int from = 0; from < getSize(); ++from)
        append(all, from == getRank() ? mine : get(number, from));
      write(out, all);
    });
  }

  WorkRef _reduce_scatter_base(at::Tensor& out, at::Tensor& in,
                               const c10d::ReduceScatterOptions& /*options*/) override {
    const int64_t number = next_++;
    const int64_t count = out.numel();
    for (int to = 0; to < getSize(); ++to) {
      if (to != getRank()) put(number, to, read(in.narrow(0, to * count, count)));
    }
    return late([this, number, out, own = in.narrow(0, getRank() * count, count)] {
      write_sum(out, number, own);
    });
  }

  WorkRef alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& from_counts,
                        std::vector<int64_t>& to_counts,
                        const c10d::AllToAllOptions& /*options*/) override {
    const int64_t number = next_++;
    Bytes mine;
    int64_t at = 0;
    for (int to = 0; to < getSize(); ++to) {
      const int64_t count = to_counts[static_cast<size_t>(to)];
      Bytes piece = read(in.narrow(0, at, count));
      at += count;
      if (to == getRank()) {
        mine = std::move(piece);
      } else if (count > 0) {
        put(number, to, piece);
      }
    }
    return late([this, number, out, mine, from_counts] {
      Bytes all;
      for (int from = 0; from < getSize(); ++from) {
        if (from == getRank()) {
          append(all, mine);
        } else if (from_counts[static_cast<size_t>(from)] > 0) {
          append(all, get(number, from));
        }
      }
      write(out, all);
    });
  }

  WorkRef send(std::vector<at::Tensor>& tensors, int to, int /*tag*/) override {
    put(to_[to]++, to, read(tensors[0]), "pair");
    return late([] {});
  }
  WorkRef recv(std::vector<at::Tensor>& tensors, int from, int /*tag*/) override {
    return late([this, from, number = from_[from]++, tensor = tensors[0]] {
      write(tensor, get(number, from, "pair"));
    });
  }

 private:
  WorkRef note(WorkRef work) {
    if (coalesced_) coalesced_->push_back(work);
    return work;
  }

  // The current stream has what the caller wrote, and takes what is brought.
  static Bytes read(const at::Tensor& tensor) {
    if (!tensor.is_cpu()) {
      const c10::impl::VirtualGuardImpl guard(tensor.device().type());
      guard.synchronizeStream(guard.getStream(tensor.device()));
    }
    const at::Tensor host = tensor.cpu().contiguous();
    Bytes bytes(host.nbytes());
    if (!bytes.empty()) std::memcpy(bytes.data(), host.const_data_ptr(), bytes.size());
    return bytes;
  }
  static at::Tensor host_of(const Bytes& bytes, const at::Tensor& like) {
    at::Tensor host = at::empty(like.sizes(), like.options().device(at::kCPU));
    TORCH_CHECK(host.nbytes() == bytes.size(), bytes.size(), " bytes for a tensor of ",
                host.nbytes());
    if (!bytes.empty()) std::memcpy(host.mutable_data_ptr(), bytes.data(), bytes.size());
    return host;
  }
  static void write(const at::Tensor& tensor, const Bytes& bytes) {
    tensor.copy_(host_of(bytes, tensor));
  }
  void write_sum(const at::Tensor& out, int64_t number, const at::Tensor& own) {
    at::Tensor sum = own.cpu().clone();
    for (int from = 0; from < getSize(); ++from) {
      if (from != getRank()) sum.add_(host_of(get(number, from), out));
    }
    out.copy_(sum);
  }
  static void append(Bytes& all, const Bytes& more) {
    all.insert(all.end(), more.begin(), more.end());
  }

  void send_to_all(int64_t number, const Bytes& bytes) {
    for (int to = 0; to < getSize(); ++to) {
      if (to != getRank()) put(number, to, bytes);
    }
  }
  static std::string key(const std::string& kind, int from, int to, int64_t number) {
    return kind + "/" + std::to_string(from) + "/" + std::to_string(to) + "/" +
           std::to_string(number);
  }
  void put(int64_t number, int to, const Bytes& bytes, const std::string& kind = "all") {
    store_->set(key(kind, getRank(), to, number), bytes);
  }
  Bytes get(int64_t number, int from, const std::string& kind = "all") {
    const std::string name = key(kind, from, getRank(), number);
    const auto end = std::chrono::steady_clock::now() + timeout_;
    while (!store_->check({name})) {
      TORCH_CHECK(!aborted_, "aborted");
      TORCH_CHECK(std::chrono::steady_clock::now() < end, "nothing came from rank ", from,
                  " in time");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    Bytes bytes = store_->get(name);
    store_->deleteKey(name);
    return bytes;
  }

  const c10::intrusive_ptr<c10d::Store> store_;
  const std::chrono::milliseconds timeout_;
  bool coalesces_ = true;
  std::optional<std::vector<WorkRef>> coalesced_;
  std::atomic<bool> aborted_{false};
  int64_t next_ = 0;
  std::map<int, int64_t> to_;
  std::map<int, int64_t> from_;
};

}  // namespace

#ifdef STALE_COLLECTIVES
extern "C" const void* trireme_collectives_abi() {
  static trireme::comm::CollectivesAbi abi = trireme::comm::kCollectivesAbi;
  ++abi.contract;
  return &abi;
}
extern "C" void trireme_make_collectives(const trireme::comm::CollectivesRequest& request,
                                         c10::intrusive_ptr<c10d::Backend>& backend) {
  backend = c10::make_intrusive<StoreBackend>(request);
}
#else
TRIREME_COLLECTIVES(request) {
  return c10::make_intrusive<StoreBackend>(request);
}
#endif
