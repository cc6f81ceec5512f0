#include "trireme/comm/rendezvous/torch_store.h"

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "trireme/base/torch_compat.h"

namespace trireme::comm {

namespace {

using Bytes = std::vector<uint8_t>;

std::string to_text(const Bytes& bytes) {
  return {bytes.begin(), bytes.end()};
}

Bytes to_bytes(const std::string& text) {
  return {text.begin(), text.end()};
}

double seconds(std::chrono::milliseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

class TorchStore final : public c10d::Store {
 public:
  using c10d::Store::set;

  TorchStore(std::shared_ptr<Rendezvous> rendezvous, std::chrono::milliseconds timeout)
      : c10d::Store(timeout), rendezvous_(std::move(rendezvous)) {}

#if TRIREME_TORCH_AT_LEAST(2, 8)
  c10::intrusive_ptr<c10d::Store> clone() override {
    return c10::make_intrusive<TorchStore>(rendezvous_, timeout_);
  }
#endif
  void set(const std::string& key, const Bytes& value) override {
    rendezvous_->set(key, to_text(value));
  }
  Bytes compareSet(const std::string& key, const Bytes& expected, const Bytes& desired) override {
    return to_bytes(rendezvous_->compare_set(key, to_text(expected), to_text(desired)));
  }
  Bytes get(const std::string& key) override {
    return to_bytes(rendezvous_->get(key, seconds(timeout_)));
  }
  int64_t add(const std::string& key, int64_t value) override {
    return rendezvous_->add(key, value);
  }
  bool deleteKey(const std::string& key) override { return rendezvous_->remove(key); }
  bool check(const std::vector<std::string>& keys) override { return rendezvous_->check(keys); }
  int64_t getNumKeys() override { return rendezvous_->num_keys(); }
  void wait(const std::vector<std::string>& keys) override { wait(keys, timeout_); }
  void wait(const std::vector<std::string>& keys,
            const std::chrono::milliseconds& timeout) override {
    rendezvous_->wait(keys, seconds(timeout));
  }
  void append(const std::string& key, const Bytes& value) override {
    rendezvous_->append(key, to_text(value));
  }
  std::vector<Bytes> multiGet(const std::vector<std::string>& keys) override {
    std::vector<Bytes> values;
    for (const std::string& key : keys) values.push_back(get(key));
    return values;
  }
  void multiSet(const std::vector<std::string>& keys, const std::vector<Bytes>& values) override {
    for (size_t i = 0; i < keys.size(); ++i) set(keys[i], values.at(i));
  }
  bool hasExtendedApi() const override { return true; }

 private:
  std::shared_ptr<Rendezvous> rendezvous_;
};

}  // namespace

c10::intrusive_ptr<c10d::Store> as_torch_store(std::shared_ptr<Rendezvous> rendezvous,
                                               double timeout_s) {
  const std::chrono::milliseconds timeout(static_cast<int64_t>(timeout_s * 1e3));
  return c10::make_intrusive<TorchStore>(std::move(rendezvous), timeout);
}

}  // namespace trireme::comm
