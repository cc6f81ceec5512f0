// Work that a device has recorded and runs again at one call: what CUDA calls a graph.
#pragma once

namespace trireme::device {

class Queue;

/// Recorded work. What it reads and writes stays where it was when it was recorded. One thread at a time.
class Graph {
 public:
  virtual ~Graph() = default;
  /// Issues the work to the queue; does not block. Throws Error{kDevice} if the device failed.
  virtual void replay(Queue& queue) = 0;
};

/// Memory of the tensors that recorded work makes for itself. What one graph of it has freed, the next takes again: replay those
/// that share it in one queue, and let nothing that must live on be in it. Lives as long as its graphs.
class GraphMemory {
 public:
  virtual ~GraphMemory() = default;
};

}  // namespace trireme::device
