# Finds libtorch inside an installed torch wheel, without Python and without find_package(Torch)
# (which insists on a CUDA toolkit even for CPU use).
#
# Input:  TRIREME_TORCH   path of a torch package folder (…/site-packages/torch), or of an unpacked
#                         libtorch; default: the private environment that scripts/setup made.
# Output: TorchWheel::torch (c10, torch_cpu), TorchWheel_VERSION, TorchWheel_ROOT.
set(TRIREME_TORCH "$ENV{TRIREME_TORCH}" CACHE PATH "Folder of an installed torch package")
set(_torch_root "${TRIREME_TORCH}")
if(NOT _torch_root)
  file(GLOB _torch_root "${CMAKE_SOURCE_DIR}/.deps/venv/lib/python3*/site-packages/torch")
endif()
if(EXISTS "${_torch_root}/torch/lib/libtorch_cpu.so")
  set(_torch_root "${_torch_root}/torch")
endif()
if(NOT EXISTS "${_torch_root}/lib/libtorch_cpu.so" OR NOT EXISTS "${_torch_root}/include/ATen/core/Tensor.h")
  message(FATAL_ERROR "No torch in '${_torch_root}'. Run scripts/setup, or name a torch package with "
                      "-DTRIREME_TORCH=/path/to/site-packages/torch")
endif()
set(TorchWheel_ROOT "${_torch_root}")
set(TorchWheel_VERSION "unknown")
if(EXISTS "${_torch_root}/version.py")
  file(STRINGS "${_torch_root}/version.py" _line REGEX "^__version__ = ")
  string(REGEX REPLACE ".*'([^']+)'.*" "\\1" TorchWheel_VERSION "${_line}")
elseif(EXISTS "${_torch_root}/share/cmake/Torch/TorchConfigVersion.cmake")
  file(STRINGS "${_torch_root}/share/cmake/Torch/TorchConfigVersion.cmake" _line REGEX "PACKAGE_VERSION \"")
  string(REGEX REPLACE ".*\"([^\"]+)\".*" "\\1" TorchWheel_VERSION "${_line}")
endif()

add_library(TorchWheel::c10 SHARED IMPORTED GLOBAL)
set_target_properties(TorchWheel::c10 PROPERTIES IMPORTED_LOCATION "${_torch_root}/lib/libc10.so")
add_library(TorchWheel::torch SHARED IMPORTED GLOBAL)
set_target_properties(TorchWheel::torch PROPERTIES
  IMPORTED_LOCATION "${_torch_root}/lib/libtorch_cpu.so"
  INTERFACE_LINK_LIBRARIES TorchWheel::c10
  INTERFACE_INCLUDE_DIRECTORIES "${_torch_root}/include"
  # The wheel ships the headers of its own fmt; they stand before the system's and have no library to link.
  # NDEBUG as the wheel was built: without it some of its classes have other members.
  INTERFACE_COMPILE_DEFINITIONS "USE_DISTRIBUTED;USE_C10D_GLOO;USE_RPC;FMT_HEADER_ONLY=1;$<$<NOT:$<CONFIG:Release>>:NDEBUG>")
# The wheel's own OpenMP runtime comes first, so that our parallel loops and ATen's share one pool.
file(GLOB _torch_gomp "${_torch_root}/lib/libgomp*.so*" "${_torch_root}/../torch.libs/libgomp*.so*")
if(_torch_gomp)
  list(GET _torch_gomp 0 _torch_gomp)
  set_property(TARGET TorchWheel::torch APPEND PROPERTY INTERFACE_LINK_LIBRARIES "${_torch_gomp}")
endif()
target_link_options(TorchWheel::torch INTERFACE -Wl,--allow-shlib-undefined)
set(CMAKE_BUILD_RPATH "${_torch_root}/lib")
set(CMAKE_INSTALL_RPATH "${_torch_root}/lib")
message(STATUS "torch ${TorchWheel_VERSION} in ${_torch_root}")

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TorchWheel REQUIRED_VARS TorchWheel_ROOT VERSION_VAR TorchWheel_VERSION)
