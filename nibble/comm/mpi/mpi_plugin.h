/* What the program needs of MPI, as a table of functions: the one thing that libnibble_mpi.so
   exports. It alone is linked with an MPI, so that the program starts without any, and another MPI
   needs only another build of this small library. */
#pragma once

#include <stddef.h>

#define NIBBLE_MPI_PLUGIN_VERSION 1

/* Functions that return int give 0 or MPI's error code. One thread at a time calls any of them. */
struct NibbleMpiPlugin {
  int version; /* NIBBLE_MPI_PLUGIN_VERSION */

  /* Joins the job that mpirun (or srun) started. */
  int (*start)(int* rank, int* size);
  /* Messages between two ranks with the same tag arrive in the order of sending. At most 2^30
     bytes. The request is done when test says so; it is freed then. */
  int (*send)(const void* data, size_t bytes, int to, int tag, void** request);
  int (*receive)(void* data, size_t bytes, int from, int tag, void** request);
  int (*test)(void** request, int* done);
  /* A message with this tag from anyone, if there is one: its size and sender. */
  int (*probe)(int tag, int* found, size_t* bytes, int* from);
  int (*finish)(void);
  /* Ends all processes of the job. */
  void (*abort)(int exit_code);

  void (*error_text)(int code, char* text, size_t size);
  /* "Open MPI v4.1.4, ..." */
  void (*library)(char* text, size_t size);
};

/* dlsym("nibble_mpi_plugin"). */
typedef const struct NibbleMpiPlugin* (*NibbleMpiPluginFunction)(void);
