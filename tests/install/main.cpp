#include <trireme/model/model_spec.h>

#include <cstdio>

int main() {
  std::printf("%lld\n", static_cast<long long>(
                            trireme::model::spec_from_preset("gpt2-124m").num_parameters()));
}
