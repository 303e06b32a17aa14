# cmake --install build/release --prefix DIR: the program and the demo checkpoint.
include(GNUInstallDirs)
if(TARGET nibble)
  install(TARGETS nibble RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY "${PROJECT_SOURCE_DIR}/models/demo" DESTINATION ${CMAKE_INSTALL_DATADIR}/nibble/models)
