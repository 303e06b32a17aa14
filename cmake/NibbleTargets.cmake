# One CMake target for each folder under nibble/ and one test binary for each folder under tests/.

# nibble_library(base LINKS fmt::fmt): the static library nibble_base from this folder's *.cpp files.
# LINKS names what the folder's line in tools/check_layers.py allows, so a forbidden call fails to link.
function(nibble_library name)
  cmake_parse_arguments(arg "" "" "LINKS;PRIVATE_LINKS;SOURCES" ${ARGN})
  if(NOT arg_SOURCES)
    file(GLOB arg_SOURCES CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cpp")
  endif()
  if(arg_SOURCES)
    add_library(nibble_${name} STATIC ${arg_SOURCES})
    target_link_libraries(nibble_${name} PUBLIC nibble_options ${arg_LINKS} PRIVATE ${arg_PRIVATE_LINKS})
  else()
    add_library(nibble_${name} INTERFACE)
    target_link_libraries(nibble_${name} INTERFACE nibble_options ${arg_LINKS})
  endif()
endfunction()

# nibble_isa_files(target FLAGS -mavx2 ... FILES a_avx2.cpp ...): the only files built with those flags.
function(nibble_isa_files target)
  cmake_parse_arguments(arg "" "" "FLAGS;FILES" ${ARGN})
  target_sources(${target} PRIVATE ${arg_FILES})
  # g++ 12 reports -Wmaybe-uninitialized inside its own AVX-512 header.
  set_source_files_properties(${arg_FILES} PROPERTIES
    COMPILE_OPTIONS "${arg_FLAGS};-Wno-maybe-uninitialized;-Wno-uninitialized")
endfunction()

# nibble_tests(checkpoint LINKS nibble_checkpoint): the binary tests_checkpoint from this folder's *_test.cpp
# files, built as one translation unit (five times faster than apart), its cases registered with ctest.
function(nibble_tests name)
  cmake_parse_arguments(arg "" "TIMEOUT" "LINKS;LABELS;SOURCES" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*_test.cpp")
  if(NOT sources AND NOT arg_SOURCES)
    message(WARNING "tests/${name} holds no *_test.cpp")
    return()
  endif()
  add_executable(tests_${name} ${sources} ${arg_SOURCES})
  set_target_properties(tests_${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
  target_link_libraries(tests_${name} PRIVATE nibble_options ${arg_LINKS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(tests_${name} PRIVATE
    NIBBLE_SOURCE_DIR="${PROJECT_SOURCE_DIR}" NIBBLE_BINARY_DIR="${PROJECT_BINARY_DIR}")
  gtest_discover_tests(tests_${name} TEST_PREFIX "${name}." DISCOVERY_MODE PRE_TEST
    PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${name};${arg_LABELS}")
endfunction()
