# Compiler flags that every target shares, and the tools picked up when present.
add_library(trireme_flags INTERFACE)
target_compile_options(trireme_flags INTERFACE -Wall -Wextra -Wnon-virtual-dtor -Wno-unknown-pragmas)

if(NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(TRIREME_CCACHE ccache)
  if(TRIREME_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER
        "${CMAKE_COMMAND};-E;env;CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime;${TRIREME_CCACHE}")
  endif()
endif()
find_program(TRIREME_MOLD mold)
if(TRIREME_MOLD)
  target_link_options(trireme_flags INTERFACE -fuse-ld=mold)
endif()

if(TRIREME_SANITIZE)
  target_compile_options(trireme_flags INTERFACE -fsanitize=${TRIREME_SANITIZE} -fno-omit-frame-pointer -g1)
  target_link_options(trireme_flags INTERFACE -fsanitize=${TRIREME_SANITIZE})
endif()
if(TRIREME_COVERAGE)
  target_compile_options(trireme_flags INTERFACE --coverage -O0 -g)
  target_link_options(trireme_flags INTERFACE --coverage)
endif()
