#include "nibble/comm/mpi/mpi_plugin.h"

#include <mpi.h>

#include <algorithm>
#include <cstring>

namespace {

int start(int* rank, int* size) {
  int provided = MPI_THREAD_SINGLE;
  int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS) return code;
  if (provided < MPI_THREAD_SERIALIZED) return MPI_ERR_OTHER;
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  code = MPI_Comm_rank(MPI_COMM_WORLD, rank);
  return code != MPI_SUCCESS ? code : MPI_Comm_size(MPI_COMM_WORLD, size);
}

int send(const void* data, size_t bytes, int to, int tag, void** request) {
  auto* const mine = new MPI_Request;
  *request = mine;
  return MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to, tag, MPI_COMM_WORLD, mine);
}

int receive(void* data, size_t bytes, int from, int tag, void** request) {
  auto* const mine = new MPI_Request;
  *request = mine;
  return MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, tag, MPI_COMM_WORLD, mine);
}

int test(void** request, int* done) {
  auto* const mine = static_cast<MPI_Request*>(*request);
  const int code = MPI_Test(mine, done, MPI_STATUS_IGNORE);
  if (code == MPI_SUCCESS && *done != 0) {
    delete mine;
    *request = nullptr;
  }
  return code;
}

int probe(int tag, int* found, size_t* bytes, int* from) {
  MPI_Status status;
  int code = MPI_Iprobe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, found, &status);
  if (code != MPI_SUCCESS || *found == 0) return code;
  int count = 0;
  code = MPI_Get_count(&status, MPI_BYTE, &count);
  *bytes = static_cast<size_t>(count);
  *from = status.MPI_SOURCE;
  return code;
}

int finish() { return MPI_Finalize(); }

void abort_job(int exit_code) { MPI_Abort(MPI_COMM_WORLD, exit_code); }

void copy_text(const char* from, char* text, size_t size) {
  const size_t length = std::min(std::strlen(from), size - 1);
  std::memcpy(text, from, length);
  text[length] = '\0';
}

void error_text(int code, char* text, size_t size) {
  char buffer[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, buffer, &length);
  copy_text(buffer, text, size);
}

void library(char* text, size_t size) {
  char buffer[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(buffer, &length);
  copy_text(buffer, text, size);
}

}  // namespace

extern "C" const NibbleMpiPlugin* nibble_mpi_plugin() {
  static const NibbleMpiPlugin plugin = {NIBBLE_MPI_PLUGIN_VERSION,
                                         start,
                                         send,
                                         receive,
                                         test,
                                         probe,
                                         finish,
                                         abort_job,
                                         error_text,
                                         library};
  return &plugin;
}
