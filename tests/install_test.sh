#!/usr/bin/env bash
# `make install` into an empty prefix, and a small project of somebody else that finds and links it.
set -uo pipefail
passed=0
failed=0
check() {
  if "${@:2}" >output.log 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "failed: $1"
    cat output.log
  fi
}
prefix=$PWD/prefix

check "install" cmake --install "$TRIREME_BUILD_DIR" --prefix "$prefix"
check "the installed program runs" "$prefix/bin/trireme" --version
check "headers are installed" test -f "$prefix/include/trireme/model/model_spec.h"
check "the command line's headers are not" test ! -e "$prefix/include/trireme/cli"
check "find_package(Trireme)" cmake -S "$TRIREME_SOURCE_DIR/tests/install" -B user -G Ninja \
  -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_BUILD_TYPE=Release
check "a program links it" cmake --build user
# Of GPT-2 124M: embeddings 50257*768 + 1024*768, 12 layers of 12*768^2 + 13*768, final norm 2*768.
check "and counts the parameters of GPT-2" test "$(user/uses_trireme)" = 124439808
# A library of kernels needs the headers alone, and the installed program takes it.
check "the example's kernel: find_package" cmake -S "$TRIREME_SOURCE_DIR/examples/kernel" -B kernel -G Ninja \
  -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_BUILD_TYPE=Release
check "it builds" cmake --build kernel
check "and keeps its contract" "$prefix/bin/trireme" bench conformance --op rms_norm --kernel my_rms_norm --load kernel/my_rms_norm.so
# A wrong version is refused.
check "a later version is not found" bash -c '! cmake -S "$1" -B later -DCMAKE_PREFIX_PATH="$2" -DTRIREME_WANTED=9.9' \
  _ "$TRIREME_SOURCE_DIR/tests/install" "$prefix"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
