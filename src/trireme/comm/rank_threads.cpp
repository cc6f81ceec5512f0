#include "trireme/comm/rank_threads.h"

#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace trireme::comm {

void run_rank_threads(int size, const std::function<std::unique_ptr<World>(int rank)>& make,
                      const std::function<void(World&)>& body) {
  std::mutex mutex;
  std::exception_ptr first;
  const auto failed = [&](World* world, const std::string& reason) {
    {
      const std::lock_guard lock(mutex);
      if (first == nullptr) first = std::current_exception();
    }
    if (world != nullptr) world->abort(reason);
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      // It ends with the thread: the others learn that nothing comes from this rank any more.
      std::unique_ptr<World> world;
      try {
        world = make(rank);
        body(*world);
      } catch (const std::exception& error) {
        failed(world.get(), error.what());
      } catch (...) {
        failed(world.get(), "an unknown exception");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first != nullptr) std::rethrow_exception(first);
}

}  // namespace trireme::comm
