#include "nibble/base/interrupt.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

#include "nibble/base/error.h"

namespace nibble {
namespace {

std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "used in a signal handler");

extern "C" void on_interrupt(int signal_number) {
  int expected = 0;
  if (!g_signal.compare_exchange_strong(expected, signal_number)) _exit(128 + signal_number);
}

}  // namespace

void install_interrupt_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // no SA_RESTART: a blocking read returns, so that a prompt can stop
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return g_signal.load(std::memory_order_relaxed) != 0; }

Status check_interrupt() {
  if (interrupted()) return cancelled("interrupted");
  return {};
}

void clear_interrupt() { g_signal.store(0); }

}  // namespace nibble
