# cmake --install build/release --prefix DIR: the program, the demo checkpoint, and libnibble.so with its
# headers and CMake package (component library).
include(GNUInstallDirs)
if(TARGET nibble)
  install(TARGETS nibble RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY "${PROJECT_SOURCE_DIR}/models/demo" DESTINATION ${CMAKE_INSTALL_DATADIR}/nibble/models)

if(TARGET nibble_shared)
  include(CMakePackageConfigHelpers)
  set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/nibble")
  install(TARGETS nibble_shared EXPORT nibble-targets
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT library)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/nibble" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT library)
  install(EXPORT nibble-targets NAMESPACE nibble:: DESTINATION ${package_dir} COMPONENT library)
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/nibble-config.cmake.in"
    "${PROJECT_BINARY_DIR}/nibble-config.cmake" INSTALL_DESTINATION ${package_dir})
  # Before 1.0 a minor version may change the interface.
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/nibble-config-version.cmake"
    COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/nibble-config.cmake" "${PROJECT_BINARY_DIR}/nibble-config-version.cmake"
    DESTINATION ${package_dir} COMPONENT library)
endif()
