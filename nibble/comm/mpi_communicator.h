// Ranks that are processes started by mpirun, on one machine or several.
#pragma once

#include <memory>

#include "nibble/base/result.h"
#include "nibble/comm/communicator.h"

namespace nibble {

// Whether mpirun (or srun with PMIx) started this process as one of several.
bool started_by_mpi();

struct MpiOptions {
  // A rank that says nothing for so long in the middle of an operation is given up. Waiting for
  // work is not limited: rank 0 is heard of every few seconds (RankPasses).
  double timeout_seconds = 120;
};

// Joins the job. MPI is found at run time in libnibble_mpi.so, beside the program, in ../lib/nibble
// or where NIBBLE_MPI_PLUGIN says. Once in a process.
//
// The operations poll, and end with kUnavailable when another rank aborts, when a process on the
// same machine is gone, when nothing comes for timeout_seconds, and when a signal has asked this
// process to end and nothing comes any more.
//
// Errors: kUnsupported when the library is not there or of another version, with what to install;
// kUnavailable with MPI's words.
Result<std::unique_ptr<Communicator>> mpi_communicator(const MpiOptions& options);

}  // namespace nibble
