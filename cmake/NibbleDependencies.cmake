# Libraries from packages. tools/setup.sh installs them on Debian and Ubuntu; nothing is downloaded here.
find_package(Threads REQUIRED)
find_package(tl-expected REQUIRED)      # libexpected-dev
find_package(fmt REQUIRED)              # libfmt-dev
find_package(spdlog REQUIRED)           # libspdlog-dev
find_package(nlohmann_json REQUIRED)    # nlohmann-json3-dev
find_package(CLI11 REQUIRED)            # libcli11-dev
find_package(ZLIB REQUIRED)             # zlib1g-dev
find_package(PkgConfig REQUIRED)        # pkg-config
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)  # libpcre2-dev
if(NIBBLE_TESTS)
  find_package(GTest REQUIRED)          # libgtest-dev, libgmock-dev
  include(GoogleTest)
endif()
if(NIBBLE_BENCH)
  find_package(benchmark REQUIRED)      # libbenchmark-dev
endif()

set(NIBBLE_HAVE_CUDA OFF)
if(NOT NIBBLE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 90a-real)
    endif()
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    # CMake 3.25 does not know that nvcc 12 and later speak C++20.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    find_package(CUDAToolkit REQUIRED)
    set(NIBBLE_HAVE_CUDA ON)
  elseif(NIBBLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "NIBBLE_CUDA=ON, but no nvcc was found: install the CUDA toolkit (13.0 is tested) "
      "and put nvcc on PATH, or configure with --preset cpu")
  endif()
endif()

# MPI for ranks that are processes; without it ranks are threads of one process.
set(NIBBLE_HAVE_MPI OFF)
if(NIBBLE_MPI)
  find_package(MPI QUIET COMPONENTS CXX)  # libopenmpi-dev
  if(MPI_CXX_FOUND)
    set(NIBBLE_HAVE_MPI ON)
  endif()
endif()
