// A thread that does one thing after the other. Internal to comm/.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace trireme::comm {

/// Runs what it is given in order. The thread starts with the first piece of work and ends in close(). Thread-safe; what it
/// runs does not throw.
class SerialThread {
 public:
  /// `name`, of at most 15 letters, is the system's name of the thread.
  explicit SerialThread(std::string name) : name_(std::move(name)) {}
  ~SerialThread() { close(); }
  SerialThread(const SerialThread&) = delete;
  SerialThread& operator=(const SerialThread&) = delete;

  /// False once closed: `work` is dropped then.
  bool push(std::function<void()> work);
  /// Blocks until what was given is done; takes nothing from then on. Not from the thread itself.
  void close();

 private:
  void run();

  const std::string name_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> work_;
  bool closed_ = false;
  std::thread thread_;
};

}  // namespace trireme::comm
