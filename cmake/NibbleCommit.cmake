# NIBBLE_COMMIT: what /version names as its commit, 12 hex digits; empty for a source tree without git.
# Asked again when HEAD or the branch moves, as that starts a new configuration.
set(NIBBLE_COMMIT "" CACHE STRING "Commit that the program names as its own [asked of git]")
set(nibble_commit "${NIBBLE_COMMIT}")
find_package(Git QUIET)
# An unpacked archive in the folder of another project must not name that project's commit.
if(nibble_commit STREQUAL "" AND GIT_FOUND AND EXISTS "${PROJECT_SOURCE_DIR}/.git")
  execute_process(COMMAND "${GIT_EXECUTABLE}" rev-parse --short=12 HEAD
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE nibble_commit
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  execute_process(COMMAND "${GIT_EXECUTABLE}" rev-parse --git-path logs/HEAD
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE nibble_head_log
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  cmake_path(ABSOLUTE_PATH nibble_head_log BASE_DIRECTORY "${PROJECT_SOURCE_DIR}")
  if(EXISTS "${nibble_head_log}")
    set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${nibble_head_log}")
  endif()
endif()
