#include "nibble/eval/sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <sstream>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/eval/seccomp_filter.h"

namespace nibble {
namespace {

constexpr uid_t kNobody = 65534;
constexpr const char* kBubblewrap = "/usr/bin/bwrap";
constexpr int kProgramFd = 9;
constexpr int kFilterFd = 10;
constexpr const char* kPython = "/usr/bin/python3";
constexpr const char* kDataPath = "/data/file";
constexpr int64_t kSharedMemoryBytes = int64_t{16} << 20;  // of /dev/shm, for locks
constexpr double kMemoryPause = 0.1;                       // seconds between two looks at it

// Sets the limits that have to be set inside (the count of processes is that of the namespace), and
// runs the program as __main__.
constexpr std::string_view kLauncher = R"python(
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NPROC, ({0}, {0}))
sys.argv = ['/tmp/program.py']
sys.path.insert(0, '/tmp')
runpy.run_path('/tmp/program.py', run_name='__main__')
)python";

// Without namespaces: the count of processes would be that of the whole user.
constexpr std::string_view kPlainLauncher = R"python(
import os, sys
with os.fdopen(9) as _file:
    _code = compile(_file.read(), 'program.py', 'exec')
sys.argv = ['program.py']
exec(_code, {'__name__': '__main__'})
)python";

// Closed when it goes.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }
  void reset() {
    if (fd_ >= 0) (void)::close(std::exchange(fd_, -1));
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// A file in memory with this content, to be read from its start.
Result<Fd> memory_file(std::string_view content) {
  Fd file(::memfd_create("program", MFD_CLOEXEC));
  if (file.get() < 0) return system_error("memfd_create", errno);
  while (!content.empty()) {
    const ssize_t written = ::write(file.get(), content.data(), content.size());
    if (written < 0) return system_error("memfd", errno);
    content.remove_prefix(static_cast<size_t>(written));
  }
  (void)::lseek(file.get(), 0, SEEK_SET);
  return file;
}

struct Pipe {
  Fd read;
  Fd write;
};
Result<Pipe> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return system_error("pipe", errno);
  return Pipe{Fd(ends[0]), Fd(ends[1])};
}

std::vector<std::string> arguments(const SandboxLimits& limits) {
  if (limits.level == SandboxLevel::kNone) {
    return {kPython, "-B", "-c", std::string(kPlainLauncher)};
  }
  std::vector<std::string> all = {kBubblewrap,
                                  "--unshare-all",
                                  "--die-with-parent",
                                  "--new-session",
                                  "--cap-drop",
                                  "ALL",
                                  "--ro-bind",
                                  "/usr",
                                  "/usr",
                                  "--symlink",
                                  "usr/bin",
                                  "/bin",
                                  "--symlink",
                                  "usr/lib",
                                  "/lib",
                                  "--symlink",
                                  "usr/lib64",
                                  "/lib64",
                                  "--ro-bind-try",
                                  "/etc/alternatives",
                                  "/etc/alternatives",
                                  "--proc",
                                  "/proc",
                                  "--dev",
                                  "/dev",
                                  "--size",
                                  std::to_string(kSharedMemoryBytes),
                                  "--tmpfs",
                                  "/dev/shm",
                                  "--size",
                                  std::to_string(limits.file_bytes),
                                  "--tmpfs",
                                  "/tmp",
                                  "--clearenv",
                                  "--setenv",
                                  "PATH",
                                  "/usr/bin",
                                  "--setenv",
                                  "LANG",
                                  "C.UTF-8",
                                  "--setenv",
                                  "PYTHONHASHSEED",
                                  "0",
                                  "--setenv",
                                  "OMP_NUM_THREADS",
                                  "1",
                                  "--setenv",
                                  "OPENBLAS_NUM_THREADS",
                                  "1",
                                  "--setenv",
                                  "PYTHONDONTWRITEBYTECODE",
                                  "1",
                                  "--chdir",
                                  "/tmp",
                                  "--ro-bind-data",
                                  std::to_string(kProgramFd),
                                  "/tmp/program.py",
                                  "--seccomp",
                                  std::to_string(kFilterFd)};
  if (!limits.data_file.empty()) {
    all.insert(all.end(),
               {"--ro-bind", limits.data_file, kDataPath, "--setenv", "NIBBLE_DATA", kDataPath});
  }
  // Both are file systems in memory, which would grow until the machine has none left.
  all.insert(all.end(), {"--remount-ro", "/dev", "--remount-ro", "/"});
  all.insert(all.end(), {kPython, "-B", "-c", fmt::format(kLauncher, limits.processes)});
  return all;
}

std::string read_small(const std::string& path) {
  std::string text(4096, '\0');
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const ssize_t size = file.get() < 0 ? 0 : ::read(file.get(), text.data(), text.size());
  text.resize(size > 0 ? static_cast<size_t>(size) : 0);
  return text;
}

// Bytes of memory of their own that a process and its descendants have. The limit on the address
// space is that of one process, and there may be many.
int64_t resident_bytes(pid_t pid, int depth = 0) {
  constexpr int kMaxDepth = 100;
  const std::string folder = fmt::format("/proc/{}", pid);
  std::istringstream pages(read_small(folder + "/statm"));
  int64_t size = 0, resident = 0, shared = 0;
  pages >> size >> resident >> shared;
  int64_t bytes = (resident - shared) * ::sysconf(_SC_PAGESIZE);
  std::istringstream children(read_small(fmt::format("{}/task/{}/children", folder, pid)));
  for (pid_t child = 0; depth < kMaxDepth && children >> child;) {
    bytes += resident_bytes(child, depth + 1);
  }
  return bytes;
}

void set_limit(int resource, rlim_t value) {
  const rlimit limit = {value, value};
  (void)::setrlimit(static_cast<__rlimit_resource>(resource), &limit);
}

// In the child; only calls that are safe behind a fork. The real root is not held by the limit on
// processes, so it becomes nobody first.
[[noreturn]] void become_sandbox(char* const* argv, char* const* environment,
                                 const SandboxLimits& limits, const std::array<int, 6>& fds) {
  (void)::setpgid(0, 0);
  // Above all of the targets first: dup2 must not overwrite what is still to be moved.
  constexpr std::array<int, 6> kTargets = {0, 1, 2, 3, kProgramFd, kFilterFd};
  std::array<int, 6> high{};
  for (size_t i = 0; i < fds.size(); ++i) high[i] = ::fcntl(fds[i], F_DUPFD, 20);
  for (size_t i = 0; i < fds.size(); ++i) {
    if (::dup2(high[i], kTargets[i]) < 0) ::_exit(125);
  }
  for (int fd = 4; fd < 1024; ++fd) {
    if (fd != kProgramFd && fd != kFilterFd) (void)::close(fd);
  }
  set_limit(RLIMIT_AS, static_cast<rlim_t>(limits.memory_bytes));
  set_limit(RLIMIT_CPU, static_cast<rlim_t>(limits.seconds) + 2);
  set_limit(RLIMIT_FSIZE, static_cast<rlim_t>(limits.file_bytes));
  set_limit(RLIMIT_NOFILE, 256);
  set_limit(RLIMIT_CORE, 0);
  set_limit(RLIMIT_STACK, rlim_t{512} << 20);
  if (::geteuid() == 0) {
    if (::setgroups(0, nullptr) != 0 || ::setresgid(kNobody, kNobody, kNobody) != 0 ||
        ::setresuid(kNobody, kNobody, kNobody) != 0) {
      ::_exit(125);
    }
  }
  ::execve(argv[0], argv, environment);
  ::_exit(125);
}

// Appends what can be read; false at the end. Beyond `limit` bytes are thrown away, and *over set.
bool drain(int fd, std::string* text, int64_t limit, bool* over) {
  std::array<char, 65536> buffer{};
  const ssize_t size = ::read(fd, buffer.data(), buffer.size());
  if (size < 0) return errno == EINTR || errno == EAGAIN;
  const int64_t room = limit - static_cast<int64_t>(text->size());
  const int64_t kept = std::min<int64_t>(size, std::max<int64_t>(0, room));
  text->append(buffer.data(), static_cast<size_t>(kept));
  if (kept < size) *over = true;
  return size > 0;
}

}  // namespace

Result<SandboxResult> run_python(std::string_view program, std::string_view input,
                                 const SandboxLimits& limits) {
  const bool is_plain = limits.level == SandboxLevel::kNone;
  if (!is_plain && ::access(kBubblewrap, X_OK) != 0) {
    return unsupported(
        "programs run in bubblewrap, which is not here: install the package "
        "bubblewrap");
  }
  Fd program_file = NIBBLE_TRY(memory_file(program));
  Fd input_file = NIBBLE_TRY(memory_file(input));
  Fd filter = NIBBLE_TRY(memory_file(""));
  if (!is_plain) NIBBLE_TRY(write_seccomp_filter(filter.get()));
  (void)::lseek(filter.get(), 0, SEEK_SET);
  Pipe out = NIBBLE_TRY(make_pipe());
  Pipe err = NIBBLE_TRY(make_pipe());
  Pipe result = NIBBLE_TRY(make_pipe());
  const std::vector<std::string> all = arguments(limits);
  std::vector<char*> argv;
  argv.reserve(all.size() + 1);
  for (const std::string& one : all) argv.push_back(const_cast<char*>(one.c_str()));
  argv.push_back(nullptr);
  // What the program may see without a sandbox; bubblewrap clears its own.
  std::vector<std::string> variables = {"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "PYTHONHASHSEED=0",
                                        "OMP_NUM_THREADS=1", "NIBBLE_DATA=" + limits.data_file};
  std::vector<char*> environment;
  environment.reserve(variables.size() + 1);
  for (std::string& one : variables) environment.push_back(one.data());
  environment.push_back(nullptr);
  const std::array<int, 6> fds_inside = {input_file.get(),   out.write.get(),    err.write.get(),
                                         result.write.get(), program_file.get(), filter.get()};

  const auto start = std::chrono::steady_clock::now();
  const pid_t child = ::fork();
  if (child < 0) return system_error("fork", errno);
  if (child == 0) {
    become_sandbox(argv.data(), environment.data(), limits, fds_inside);
  }
  out.write.reset();
  err.write.reset();
  result.write.reset();

  SandboxResult answer;
  bool over = false, error_over = false, timeout = false, is_full = false;
  double looked = 0;
  std::array<pollfd, 3> fds = {
      {{out.read.get(), POLLIN, 0}, {err.read.get(), POLLIN, 0}, {result.read.get(), POLLIN, 0}}};
  const std::array<std::string*, 3> texts = {&answer.out, &answer.err, &answer.result};
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  int status = 0;
  pid_t ended = 0;
  const auto open_pipes = [&] { return fds[0].fd >= 0 || fds[1].fd >= 0 || fds[2].fd >= 0; };
  while (ended == 0 && !over && !timeout && !is_full) {
    (void)::poll(fds.data(), fds.size(), open_pipes() ? 20 : 1);
    for (size_t i = 0; i < fds.size(); ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      const int64_t limit = i == 1 ? limits.error_bytes : limits.output_bytes;
      if (!drain(fds[i].fd, texts[i], limit, i == 1 ? &error_over : &over)) fds[i].fd = -1;
    }
    ended = ::waitpid(child, &status, WNOHANG);
    timeout = passed() > limits.seconds || interrupted();
    if (passed() - looked > kMemoryPause) {
      looked = passed();
      is_full = ended == 0 && resident_bytes(child) > limits.memory_bytes;
    }
  }
  // The namespace goes with its first process: nothing inside outlives it.
  (void)::kill(-child, SIGKILL);
  (void)::kill(child, SIGKILL);
  if (ended == 0) (void)::waitpid(child, &status, 0);
  // What stood in the pipes when it ended; grandchildren that hold them are gone.
  for (size_t i = 0; i < fds.size(); ++i) {
    const int64_t limit = i == 1 ? limits.error_bytes : limits.output_bytes;
    while (fds[i].fd >= 0 && !over) {
      pollfd one = {fds[i].fd, POLLIN, 0};
      if (::poll(&one, 1, 200) <= 0) break;
      if (!drain(fds[i].fd, texts[i], limit, i == 1 ? &error_over : &over)) break;
    }
  }
  answer.seconds = passed();
  NIBBLE_TRY(check_interrupt());
  if (over) {
    answer.outcome = SandboxOutcome::kOutputLimit;
  } else if (is_full) {
    answer.outcome = SandboxOutcome::kExited;
    answer.exit_code = 128 + SIGKILL;
    answer.err += fmt::format("killed: its processes took more than {} bytes of memory\n",
                              limits.memory_bytes);
  } else if (timeout && ended == 0) {
    answer.outcome = SandboxOutcome::kTimeout;
  } else {
    answer.outcome = SandboxOutcome::kExited;
    answer.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  if (is_plain) return answer;
  if (answer.err.starts_with("bwrap: ") && answer.err.find(limits.data_file) != std::string::npos &&
      !limits.data_file.empty()) {
    return unsupported(fmt::format("{} (the sandbox's user reads it: as root that is nobody)",
                                   answer.err.substr(7, answer.err.find('\n') - 7)));
  }
  if (answer.exit_code == 125 || answer.err.starts_with("bwrap: ")) {
    return unsupported(fmt::format(
        "bubblewrap cannot make its namespaces here{}{}; they may be switched off "
        "(kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
        answer.err.empty() ? "" : ": ", answer.err.substr(0, answer.err.find('\n'))));
  }
  return answer;
}

std::string_view sandbox_level_name(SandboxLevel level) {
  return level == SandboxLevel::kBubblewrap ? "bwrap" : "none";
}

Status check_sandbox(SandboxLevel level) {
  if (level == SandboxLevel::kNone) return {};
  const char* home = std::getenv("HOME");
  const std::string probe = fmt::format(R"python(
import os, socket, sys
def possible(what, attempt):
    try:
        attempt()
        print(what)
    except BaseException:
        pass
def connect():
    s = socket.create_connection(('1.1.1.1', 53), 1)
def forks():
    for i in range(200):
        if os.fork() == 0:
            import time
            time.sleep(30)
            os._exit(0)
def parent():
    os.kill({0}, 0)
def write():
    open('/usr/nibble-probe', 'w').write('x')
possible('open a connection', connect)
possible('read the home folder', lambda: os.listdir('{1}'))
possible('read the password file', lambda: open('/etc/passwd').read())
possible('write outside /tmp', write)
possible('see the process that started it', parent)
def namespace():
    import ctypes
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno())
possible('make a user namespace', namespace)
possible('start 200 processes', forks)
os.write(3, b'done')
)python",
                                        ::getpid(), home == nullptr ? "/root" : home);
  SandboxLimits limits;
  limits.seconds = 20;
  const SandboxResult result = NIBBLE_TRY(run_python(probe, "", limits));
  if (!result.out.empty()) {
    return unsupported("the sandbox does not hold here; a program in it could " +
                       result.out.substr(0, result.out.find('\n')));
  }
  if (result.result != "done") {
    return unsupported("the sandbox's probe did not end: " + result.err.substr(0, 300));
  }
  return {};
}

}  // namespace nibble
