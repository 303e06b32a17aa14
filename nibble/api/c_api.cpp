// The C interface: thin, but nothing thrown leaves it.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>

#include "nibble/llm.h"
#include "nibble/nibble.h"

using nibble::api::CompletionOutput;
using nibble::api::LLM;
using nibble::api::LLMOptions;
using nibble::api::Prompt;
using nibble::api::RequestHandle;
using nibble::api::RequestOutput;
using nibble::api::ResultError;
using nibble::api::SamplingParams;

// NOLINTBEGIN(readability-identifier-naming): names as in C
struct nibble_llm {
  LLM llm;
};

struct nibble_request {
  RequestHandle handle;
};

struct nibble_output {
  RequestOutput output;
};
// NOLINTEND(readability-identifier-naming)

namespace {

thread_local std::string last_error;

// What `call` throws as a status; what it needs to say is kept for nibble_last_error().
template <typename Call>
nibble_status guarded(const Call& call) {
  try {
    call();
    return NIBBLE_OK;
  } catch (const ResultError& error) {
    last_error = error.what();
    return static_cast<nibble_status>(error.code);
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
    return NIBBLE_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    last_error = error.what();
    return NIBBLE_INTERNAL;
  } catch (...) {
    last_error = "an unknown exception";
    return NIBBLE_INTERNAL;
  }
}

void require(const void* argument, const char* name) {
  if (argument != nullptr) return;
  throw ResultError({nibble::api::ErrorCode::kInvalidArgument, std::string(name) + " is NULL"});
}

SamplingParams params_of(const char* json) {
  if (json == nullptr) return {};
  return nibble::api::parse_sampling_params(json).value();
}

// Lets a callback abort its request, which may have no handle yet when it is first called.
class CallbackState {
 public:
  CallbackState(nibble_output_callback callback, void* user_data)
      : callback_(callback), user_data_(user_data) {}

  void operator()(const RequestOutput& output) {
    const nibble_output shown{output};
    if (callback_(&shown, user_data_) == 0) return;
    const std::lock_guard lock(mutex_);
    abort_ = true;
    if (handle_) handle_->abort();
  }
  void set_handle(const RequestHandle& handle) {
    const std::lock_guard lock(mutex_);
    handle_ = handle;
    if (abort_) handle_->abort();
  }

 private:
  nibble_output_callback callback_;
  void* user_data_;
  std::mutex mutex_;
  std::optional<RequestHandle> handle_;
  bool abort_ = false;
};

// `start` gets what to call with outputs, and returns Result<RequestHandle>.
template <typename Start>
void start_request(nibble_output_callback callback, void* user_data, nibble_request** request,
                   const Start& start) {
  require(request, "request");
  *request = nullptr;
  if (callback == nullptr) {
    *request = new nibble_request{start(nullptr).value()};
    return;
  }
  auto state = std::make_shared<CallbackState>(callback, user_data);
  RequestHandle handle = start([state](const RequestOutput& output) { (*state)(output); }).value();
  state->set_handle(handle);
  *request = new nibble_request{std::move(handle)};
}

void generate(const nibble_llm* llm, const Prompt& prompt, const char* params_json,
              nibble_output** output) {
  *output = new nibble_output{llm->llm.generate(prompt, params_of(params_json)).value()};
}

const CompletionOutput* output_at(const nibble_output* output, size_t index) {
  if (output == nullptr || index >= output->output.outputs.size()) return nullptr;
  return &output->output.outputs[index];
}

const int32_t* give_ids(const std::vector<int32_t>* ids, size_t* count) {
  if (count != nullptr) *count = ids == nullptr ? 0 : ids->size();
  return ids == nullptr ? nullptr : ids->data();
}

}  // namespace

const char* nibble_version(void) { return nibble::api::version(); }
const char* nibble_last_error(void) { return last_error.c_str(); }

nibble_status nibble_llm_load(const char* model, const char* options_json, nibble_llm** llm) {
  return guarded([&] {
    require(llm, "llm");
    *llm = nullptr;
    require(model, "model");
    LLMOptions options;
    if (options_json != nullptr) options = nibble::api::parse_llm_options(options_json).value();
    options.model = model;
    *llm = new nibble_llm{LLM::load(options).value()};
  });
}

void nibble_llm_free(nibble_llm* llm) { delete llm; }
int64_t nibble_llm_max_seq_len(const nibble_llm* llm) { return llm->llm.max_seq_len(); }
int64_t nibble_llm_vocab_size(const nibble_llm* llm) { return llm->llm.vocab_size(); }

nibble_status nibble_generate(const nibble_llm* llm, const char* prompt, const char* params_json,
                              nibble_output** output) {
  return guarded([&] {
    require(output, "output");
    *output = nullptr;
    require(llm, "llm");
    require(prompt, "prompt");
    generate(llm, prompt, params_json, output);
  });
}

nibble_status nibble_generate_ids(const nibble_llm* llm, const int32_t* token_ids,
                                  size_t num_token_ids, const char* params_json,
                                  nibble_output** output) {
  return guarded([&] {
    require(output, "output");
    *output = nullptr;
    require(llm, "llm");
    if (num_token_ids > 0) require(token_ids, "token_ids");
    generate(llm, std::vector<int32_t>(token_ids, token_ids + num_token_ids), params_json, output);
  });
}

nibble_status nibble_chat(const nibble_llm* llm, const char* messages_json, const char* params_json,
                          nibble_output** output) {
  return guarded([&] {
    require(output, "output");
    *output = nullptr;
    require(llm, "llm");
    require(messages_json, "messages_json");
    *output = new nibble_output{llm->llm.chat(messages_json, params_of(params_json)).value()};
  });
}

nibble_status nibble_start(const nibble_llm* llm, const char* prompt, const char* params_json,
                           nibble_output_callback callback, void* user_data,
                           nibble_request** request) {
  return guarded([&] {
    require(llm, "llm");
    require(prompt, "prompt");
    start_request(callback, user_data, request, [&](LLM::OutputCallback on_output) {
      return llm->llm.generate_async(prompt, params_of(params_json), std::move(on_output));
    });
  });
}

nibble_status nibble_start_chat(const nibble_llm* llm, const char* messages_json,
                                const char* params_json, nibble_output_callback callback,
                                void* user_data, nibble_request** request) {
  return guarded([&] {
    require(llm, "llm");
    require(messages_json, "messages_json");
    start_request(callback, user_data, request, [&](LLM::OutputCallback on_output) {
      return llm->llm.chat_async(messages_json, params_of(params_json), std::move(on_output));
    });
  });
}

nibble_status nibble_request_next(nibble_request* request, nibble_output** output) {
  return guarded([&] {
    require(output, "output");
    *output = nullptr;
    require(request, "request");
    auto next = request->handle.next();
    if (next) *output = new nibble_output{*std::move(next)};
  });
}

nibble_status nibble_request_result(nibble_request* request, nibble_output** output) {
  return guarded([&] {
    require(output, "output");
    *output = nullptr;
    require(request, "request");
    *output = new nibble_output{request->handle.result()};
  });
}

void nibble_request_abort(nibble_request* request) {
  (void)guarded([&] { request->handle.abort(); });
}
void nibble_request_free(nibble_request* request) { delete request; }

size_t nibble_output_count(const nibble_output* output) { return output->output.outputs.size(); }
int nibble_output_finished(const nibble_output* output) { return output->output.finished ? 1 : 0; }
const char* nibble_output_error(const nibble_output* output) {
  return output->output.error ? output->output.error->message.c_str() : nullptr;
}
const char* nibble_output_text(const nibble_output* output, size_t index) {
  const CompletionOutput* one = output_at(output, index);
  return one == nullptr ? nullptr : one->text.c_str();
}
const char* nibble_output_text_diff(const nibble_output* output, size_t index) {
  const CompletionOutput* one = output_at(output, index);
  return one == nullptr ? nullptr : one->text_diff.c_str();
}
const char* nibble_output_reasoning(const nibble_output* output, size_t index) {
  const CompletionOutput* one = output_at(output, index);
  return one == nullptr ? nullptr : one->reasoning_content.c_str();
}
const char* nibble_output_finish_reason(const nibble_output* output, size_t index) {
  const CompletionOutput* one = output_at(output, index);
  return one == nullptr ? nullptr : one->finish_reason.c_str();
}
const int32_t* nibble_output_token_ids(const nibble_output* output, size_t index,
                                       size_t* num_token_ids) {
  const CompletionOutput* one = output_at(output, index);
  return give_ids(one == nullptr ? nullptr : &one->token_ids, num_token_ids);
}
double nibble_output_logprob(const nibble_output* output, size_t index, size_t token) {
  const CompletionOutput* one = output_at(output, index);
  if (one == nullptr || token >= one->logprobs.size()) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return one->logprobs[token].chosen.logprob;
}
const int32_t* nibble_output_prompt_token_ids(const nibble_output* output, size_t* num_token_ids) {
  return give_ids(&output->output.prompt_token_ids, num_token_ids);
}
void nibble_output_free(nibble_output* output) { delete output; }

nibble_status nibble_encode(const nibble_llm* llm, const char* text, int add_special_tokens,
                            int32_t** token_ids, size_t* num_token_ids) {
  return guarded([&] {
    require(token_ids, "token_ids");
    require(num_token_ids, "num_token_ids");
    *token_ids = nullptr;
    *num_token_ids = 0;
    require(llm, "llm");
    require(text, "text");
    const auto ids = llm->llm.encode(text, add_special_tokens != 0).value();
    // One more: malloc(0) may be NULL.
    auto* copy = static_cast<int32_t*>(std::malloc((ids.size() + 1) * sizeof(int32_t)));
    if (copy == nullptr) throw std::bad_alloc();
    std::copy(ids.begin(), ids.end(), copy);
    *token_ids = copy;
    *num_token_ids = ids.size();
  });
}

nibble_status nibble_decode(const nibble_llm* llm, const int32_t* token_ids, size_t num_token_ids,
                            char** text) {
  return guarded([&] {
    require(text, "text");
    *text = nullptr;
    require(llm, "llm");
    if (num_token_ids > 0) require(token_ids, "token_ids");
    const std::string decoded =
        llm->llm.decode(std::vector<int32_t>(token_ids, token_ids + num_token_ids), false);
    auto* copy = static_cast<char*>(std::malloc(decoded.size() + 1));
    if (copy == nullptr) throw std::bad_alloc();
    std::memcpy(copy, decoded.c_str(), decoded.size() + 1);
    *text = copy;
  });
}

void nibble_free(void* memory) { std::free(memory); }
