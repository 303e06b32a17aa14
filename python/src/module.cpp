// nibble._nibble: the C++ interface for Python. Options and parameters come as JSON; the classes
// that people use are in the package's Python files. The GIL is released wherever something is
// waited for.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "nibble/llm.h"

namespace py = pybind11;

namespace {

constexpr double kSignalInterval = 0.05;  // seconds between two looks for Ctrl-C

[[noreturn]] void raise(const nibble::Error& error) {
  const py::object made = py::module_::import("nibble.errors")
                              .attr("error_of")(static_cast<int>(error.code), error.message);
  PyErr_SetObject(py::type::of(made).ptr(), made.ptr());
  throw py::error_already_set();
}

template <typename T>
T value_or_raise(nibble::Result<T> result) {
  if (!result) raise(result.error());
  return *std::move(result);
}

// What `call` returns, a nibble::Result; other Python threads run meanwhile.
template <typename Call>
auto without_gil(const Call& call) {
  const py::gil_scoped_release release;
  return call();
}

void check_signals() {
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// Waits in pieces, so that Ctrl-C is seen. `wait` gets seconds and says whether it has succeeded.
template <typename Wait>
bool wait_with_signals(std::optional<double> timeout, const Wait& wait) {
  double left = timeout.value_or(std::numeric_limits<double>::infinity());
  for (;;) {
    bool done = false;
    {
      const py::gil_scoped_release release;
      done = wait(std::min(left, kSignalInterval));
    }
    check_signals();
    if (done) return true;
    left -= kSignalInterval;
    if (!(left > 0)) return false;
  }
}

// Wakes an asyncio loop that watches `fileno`: no Python runs on the engine's thread.
class Waker {
 public:
  Waker() : state_(std::make_shared<State>()) {}
  int fileno() const { return state_->fd; }
  // Forgets all wakes so far.
  void clear() const {
    uint64_t count = 0;
    (void)!::read(state_->fd, &count, sizeof(count));
  }
  std::function<void()> callback() const {
    return [state = state_] {
      const uint64_t one = 1;
      (void)!::write(state->fd, &one, sizeof(one));
    };
  }

 private:
  struct State {
    State() : fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
      if (fd < 0) throw std::runtime_error("no eventfd can be had: too many open files?");
    }
    ~State() { ::close(fd); }
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    int fd;
  };
  std::shared_ptr<State> state_;
};

// {token_ids, logprobs, ranks: [tokens]; top_token_ids, top_logprobs, top_ranks: [tokens, k]}, k
// the most entries of a token; missing ones are id -1 with -inf.
py::object logprobs_dict(const std::vector<nibble::PositionLogprobs>& positions) {
  const auto rows = static_cast<py::ssize_t>(positions.size());
  py::ssize_t cols = 0;
  for (const auto& position : positions) {
    cols = std::max(cols, static_cast<py::ssize_t>(position.top.size()));
  }
  py::array_t<int32_t> ids(rows);
  py::array_t<double> logprobs(rows);
  py::array_t<int64_t> ranks(rows);
  py::array_t<int32_t> top_ids({rows, cols});
  py::array_t<double> top_logprobs({rows, cols});
  py::array_t<int64_t> top_ranks({rows, cols});
  for (py::ssize_t i = 0; i < rows; ++i) {
    const auto& position = positions[static_cast<size_t>(i)];
    ids.mutable_at(i) = position.chosen.token_id;
    logprobs.mutable_at(i) = position.chosen.logprob;
    ranks.mutable_at(i) = position.chosen.rank;
    for (py::ssize_t j = 0; j < cols; ++j) {
      const bool has = j < static_cast<py::ssize_t>(position.top.size());
      const auto& top = has ? position.top[static_cast<size_t>(j)] : nibble::TokenLogprob{};
      top_ids.mutable_at(i, j) = has ? top.token_id : -1;
      top_logprobs.mutable_at(i, j) = has ? top.logprob : -std::numeric_limits<double>::infinity();
      top_ranks.mutable_at(i, j) = has ? top.rank : -1;
    }
  }
  py::dict result;
  result["token_ids"] = ids;
  result["logprobs"] = logprobs;
  result["ranks"] = ranks;
  result["top_token_ids"] = top_ids;
  result["top_logprobs"] = top_logprobs;
  result["top_ranks"] = top_ranks;
  return result;
}

py::dict output_dict(const nibble::CompletionOutput& output) {
  py::dict result;
  result["index"] = output.index;
  result["text"] = output.text;
  result["token_ids"] = output.token_ids;
  result["reasoning_content"] = output.reasoning_content;
  result["finish_reason"] =
      output.finish_reason.empty() ? py::object(py::none()) : py::str(output.finish_reason);
  result["stop_reason"] = py::none();
  if (!output.stop_text.empty()) result["stop_reason"] = output.stop_text;
  if (output.stop_token_id) result["stop_reason"] = *output.stop_token_id;
  result["logprobs"] = output.logprobs.empty() ? py::none() : logprobs_dict(output.logprobs);
  result["cumulative_logprob"] = output.cumulative_logprob;
  result["text_diff"] = output.text_diff;
  result["reasoning_content_diff"] = output.reasoning_content_diff;
  result["token_ids_diff"] = output.token_ids_diff;
  return result;
}

py::dict request_dict(const nibble::RequestOutput& output) {
  py::dict result;
  result["request_id"] = output.request_id;
  result["prompt"] = output.prompt;
  result["prompt_token_ids"] = output.prompt_token_ids;
  py::list outputs;
  for (const auto& one : output.outputs) outputs.append(output_dict(one));
  result["outputs"] = outputs;
  result["prompt_logprobs"] =
      output.prompt_logprobs.empty() ? py::none() : logprobs_dict(output.prompt_logprobs);
  result["finished"] = output.finished;
  result["num_cached_tokens"] = output.num_cached_tokens;
  result["seed"] = output.seed;
  py::dict metrics;
  metrics["arrival_time"] = output.metrics.arrival_time;
  metrics["time_to_first_token"] = output.metrics.time_to_first_token;
  metrics["end_to_end"] = output.metrics.end_to_end;
  result["metrics"] = metrics;
  result["error"] = output.error ? py::object(py::str(output.error->message)) : py::none();
  return result;
}

py::dict stats_dict(const nibble::Stats& stats) {
  py::dict d;
  d["num_requests_running"] = stats.num_requests_running;
  d["num_requests_waiting"] = stats.num_requests_waiting;
  d["num_steps"] = stats.num_steps;
  d["prompt_tokens_total"] = stats.prompt_tokens_total;
  d["generation_tokens_total"] = stats.generation_tokens_total;
  d["prefix_cache_hits_total"] = stats.prefix_cache_hits_total;
  d["num_preemptions_total"] = stats.num_preemptions_total;
  d["spec_decode_num_drafts_total"] = stats.spec_decode_num_drafts_total;
  d["spec_decode_num_draft_tokens_total"] = stats.spec_decode_num_draft_tokens_total;
  d["spec_decode_num_accepted_tokens_total"] = stats.spec_decode_num_accepted_tokens_total;
  d["spec_decode_num_accepted_tokens_per_pos_total"] =
      stats.spec_decode_num_accepted_tokens_per_pos_total;
  d["acceptance_length"] = stats.acceptance_length;
  d["kv_cache_usage_perc"] = stats.kv_cache_usage_perc;
  d["num_kv_blocks"] = stats.num_kv_blocks;
  d["num_cached_kv_blocks"] = stats.num_cached_kv_blocks;
  return d;
}

using PyPrompt = std::variant<std::string, std::vector<int32_t>>;

nibble::Prompts to_prompts(const std::vector<PyPrompt>& prompts) {
  std::vector<nibble::Prompt> result;
  for (const PyPrompt& prompt : prompts) {
    std::visit([&](const auto& value) { result.emplace_back(value); }, prompt);
  }
  return result;
}

nibble::LLM load(const std::string& options_json) {
  const auto options = value_or_raise(nibble::parse_llm_options(options_json));
  return value_or_raise(without_gil([&] { return nibble::LLM::load(options); }));
}

std::vector<nibble::RequestHandle> start(const nibble::LLM& llm,
                                         const std::vector<PyPrompt>& prompts,
                                         const std::vector<std::string>& params_json) {
  std::vector<nibble::SamplingParams> params;
  params.reserve(params_json.size());
  for (const std::string& json : params_json) {
    params.push_back(value_or_raise(nibble::parse_sampling_params(json)));
  }
  const nibble::Prompts converted = to_prompts(prompts);
  return value_or_raise(without_gil([&] { return llm.generate_async(converted, params); }));
}

}  // namespace

PYBIND11_MODULE(_nibble, m) {
  m.doc() = "The C++ interface of nibble; use the package nibble instead.";
  m.attr("__version__") = nibble::version();

  m.def("check_sampling_params",
        [](const std::string& json) { (void)value_or_raise(nibble::parse_sampling_params(json)); });

  py::class_<Waker>(m, "Waker")
      .def(py::init<>())
      .def("fileno", &Waker::fileno)
      .def("clear", &Waker::clear);

  py::class_<nibble::RequestHandle>(m, "RequestHandle")
      .def_property_readonly("request_id", &nibble::RequestHandle::request_id)
      .def_property_readonly("finished", &nibble::RequestHandle::finished)
      .def("abort", &nibble::RequestHandle::abort, py::call_guard<py::gil_scoped_release>())
      .def("ready", [](const nibble::RequestHandle& self) { return self.wait(0); })
      .def("wake", [](nibble::RequestHandle& self,
                      const Waker& waker) { self.on_progress(waker.callback()); })
      // The next output, or None after the last one; TimeoutError.
      .def(
          "next",
          [](nibble::RequestHandle& self, std::optional<double> timeout) -> py::object {
            if (!wait_with_signals(timeout, [&](double s) { return self.wait(s); })) {
              PyErr_SetString(PyExc_TimeoutError, "no new output came in time");
              throw py::error_already_set();
            }
            const auto output = self.next();
            return output ? py::object(request_dict(*output)) : py::none();
          },
          py::arg("timeout") = py::none())
      .def(
          "result",
          [](nibble::RequestHandle& self, std::optional<double> timeout) {
            if (!wait_with_signals(timeout, [&](double s) { return self.wait_finished(s); })) {
              PyErr_SetString(PyExc_TimeoutError, "the request did not end in time");
              throw py::error_already_set();
            }
            return request_dict(self.result());
          },
          py::arg("timeout") = py::none());

  py::class_<nibble::LLM>(m, "LLM")
      .def(py::init(&load), py::arg("options_json"))
      .def("start", &start, py::arg("prompts"), py::arg("params_json"))
      .def("start_chat",
           [](const nibble::LLM& self, const std::string& messages, const std::string& params) {
             const auto parsed = value_or_raise(nibble::parse_sampling_params(params));
             return value_or_raise(without_gil([&] { return self.chat_async(messages, parsed); }));
           })
      .def("encode",
           [](const nibble::LLM& self, const std::string& text, bool add_special_tokens) {
             return value_or_raise(
                 without_gil([&] { return self.encode(text, add_special_tokens); }));
           })
      .def("decode", &nibble::LLM::decode, py::call_guard<py::gil_scoped_release>())
      .def("apply_chat_template",
           [](const nibble::LLM& self, const std::string& json, const std::string& thinking) {
             return value_or_raise(
                 without_gil([&] { return self.apply_chat_template(json, thinking); }));
           })
      .def("get_stats", [](const nibble::LLM& self) { return stats_dict(self.get_stats()); })
      .def_property_readonly("max_seq_len", &nibble::LLM::max_seq_len)
      .def_property_readonly("vocab_size", &nibble::LLM::vocab_size)
      .def_property_readonly("model", &nibble::LLM::model)
      .def("shutdown", &nibble::LLM::shutdown, py::call_guard<py::gil_scoped_release>());
}
