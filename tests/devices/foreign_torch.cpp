// A plug-in that was built for a torch that had a function which this one does not have.
namespace c10 {
void function_of_another_release(int device);
}

__attribute__((constructor)) static void load() {
  c10::function_of_another_release(0);
}
