#include "trireme/cli/command.h"

int main(int argc, char** argv) {
  return trireme::cli::run(argc, argv);
}
