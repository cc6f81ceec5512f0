# `make install`: the program, the rooms as static libraries with their headers, and a CMake package, so that another
# project says find_package(Trireme) and links Trireme::Trireme or single rooms (Trireme::model ...).
# torch itself is not copied: the program and the package remember the one they were built against.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(_rooms GLOBAL PROPERTY TRIREME_ROOMS)
list(REMOVE_ITEM _rooms cli)
set(_targets ${_rooms})
list(TRANSFORM _targets PREPEND trireme_)
foreach(_room IN LISTS _rooms)
  set_target_properties(trireme_${_room} PROPERTIES EXPORT_NAME ${_room})
endforeach()
add_library(trireme_all INTERFACE)
set_target_properties(trireme_all PROPERTIES EXPORT_NAME Trireme)
target_link_libraries(trireme_all INTERFACE ${_targets})

install(TARGETS trireme RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS ${_targets} trireme_wheel_fmt trireme_kernel_headers trireme_all EXPORT TriremeTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/trireme)
install(DIRECTORY src/trireme/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/trireme
        FILES_MATCHING PATTERN "*.h" PATTERN "cli" EXCLUDE PATTERN "testing" EXCLUDE
        PATTERN "test_*" EXCLUDE)

set(_package ${CMAKE_INSTALL_LIBDIR}/cmake/Trireme)
install(EXPORT TriremeTargets NAMESPACE Trireme:: DESTINATION ${_package})
configure_package_config_file(cmake/TriremeConfig.cmake.in ${CMAKE_BINARY_DIR}/TriremeConfig.cmake
                              INSTALL_DESTINATION ${_package})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/TriremeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/TriremeConfig.cmake ${CMAKE_BINARY_DIR}/TriremeConfigVersion.cmake
              cmake/FindTorchWheel.cmake
        DESTINATION ${_package})
