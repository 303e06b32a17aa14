# Language level, warnings, sanitizers, compiler cache: what every target shares.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(NIBBLE_CCACHE ccache)
if(NIBBLE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${NIBBLE_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${NIBBLE_CCACHE}")
endif()

# -ffp-contract=off: the reference has to round where the source says so; kernels call fma by name.
add_library(nibble_options INTERFACE)
target_include_directories(nibble_options INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(nibble_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wnon-virtual-dtor -ffp-contract=off>
  # g++ 12 reports -Wrestrict for any inlined std::string::insert (GCC bug 105651).
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)

# A newer compiler's new warning must not keep a user from building, so only the compiler that every
# change is checked with is strict by itself.
if(NIBBLE_WERROR OR (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION MATCHES "^12\\."))
  target_compile_options(nibble_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()

if(NIBBLE_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "NIBBLE_FUZZ needs clang, this is ${CMAKE_CXX_COMPILER_ID}: configure with --preset fuzz")
  endif()
  target_compile_options(nibble_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
endif()

if(NIBBLE_SANITIZE)
  target_compile_options(nibble_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${NIBBLE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer>)
  # g++ 12 sees false uninitialised and out-of-bounds uses in code that a sanitizer has rewritten.
  target_compile_options(nibble_options INTERFACE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized -Wno-array-bounds -Wno-stringop-overflow>)
  # g++'s thread sanitizer knows no fences; Asio's scheduler has locks beside them.
  if(NIBBLE_SANITIZE MATCHES thread)
    target_compile_definitions(nibble_options INTERFACE BOOST_ASIO_DISABLE_FENCED_BLOCK)
  endif()
  target_link_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()
