/* nibble for C and for languages that call C.
 *
 * Options and parameters are JSON objects with the names of options.h and sampling_params.h, or
 * NULL for none. Functions that can fail return a nibble_status; nibble_last_error() tells why. No
 * exception leaves this interface. Everything but the *_free functions may be called from any
 * thread. Texts are UTF-8; those that an object gives out live as long as it does.
 *
 *   nibble_llm* llm;
 *   nibble_output* output;
 *   if (nibble_llm_load("DIR", NULL, &llm) != NIBBLE_OK) return fail(nibble_last_error());
 *   if (nibble_generate(llm, "Hello, my name is", "{\"max_tokens\": 32}", &output) == NIBBLE_OK) {
 *     puts(nibble_output_text(output, 0));
 *     nibble_output_free(output);
 *   }
 *   nibble_llm_free(llm);
 */
#pragma once

/* NOLINTBEGIN(readability-identifier-naming): names as in C */

#include <stddef.h>
#include <stdint.h>

#include "nibble/export.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum nibble_status {
  NIBBLE_OK = 0,
  NIBBLE_INVALID_ARGUMENT = 1,
  NIBBLE_NOT_FOUND = 2,
  NIBBLE_CORRUPT = 3,
  NIBBLE_UNSUPPORTED = 4,
  NIBBLE_OUT_OF_MEMORY = 5,
  NIBBLE_UNAVAILABLE = 6,
  NIBBLE_CANCELLED = 7,
  NIBBLE_INTERNAL = 8 /* an exception that should not have come */
} nibble_status;

typedef struct nibble_llm nibble_llm;         /* a loaded model */
typedef struct nibble_request nibble_request; /* a request on its way */
typedef struct nibble_output nibble_output;   /* what came for a prompt */

NIBBLE_EXPORT const char* nibble_version(void);

/* Of this thread's last call that failed; valid until its next one that fails. */
NIBBLE_EXPORT const char* nibble_last_error(void);

/* A checkpoint's directory, or a name in the local model folders. */
NIBBLE_EXPORT nibble_status nibble_llm_load(const char* model, const char* options_json,
                                            nibble_llm** llm);
/* Ends what still runs with "abort". NULL is fine, here and for the other *_free functions. */
NIBBLE_EXPORT void nibble_llm_free(nibble_llm* llm);
NIBBLE_EXPORT int64_t nibble_llm_max_seq_len(const nibble_llm* llm);
NIBBLE_EXPORT int64_t nibble_llm_vocab_size(const nibble_llm* llm);

/* Waits for the whole answer. A request that fails after it began still gives an output, with
 * nibble_output_error(). */
NIBBLE_EXPORT nibble_status nibble_generate(const nibble_llm* llm, const char* prompt,
                                            const char* params_json, nibble_output** output);
NIBBLE_EXPORT nibble_status nibble_generate_ids(const nibble_llm* llm, const int32_t* token_ids,
                                                size_t num_token_ids, const char* params_json,
                                                nibble_output** output);
/* messages_json: OpenAI's messages, [{"role": "user", "content": "Hi"}], or {messages, tools}. */
NIBBLE_EXPORT nibble_status nibble_chat(const nibble_llm* llm, const char* messages_json,
                                        const char* params_json, nibble_output** output);

/* Called on the model's own thread whenever tokens came, and at the end (nibble_output_finished).
 * It must be quick and must not wait for any request. `output` belongs to the caller and is gone
 * afterwards. Not 0: the request is aborted. */
typedef int (*nibble_output_callback)(const nibble_output* output, void* user_data);

/* Starts a request. `callback` may be NULL. */
NIBBLE_EXPORT nibble_status nibble_start(const nibble_llm* llm, const char* prompt,
                                         const char* params_json, nibble_output_callback callback,
                                         void* user_data, nibble_request** request);
NIBBLE_EXPORT nibble_status nibble_start_chat(const nibble_llm* llm, const char* messages_json,
                                              const char* params_json,
                                              nibble_output_callback callback, void* user_data,
                                              nibble_request** request);
/* The next output: so far, with text_diff since the last call; *output is NULL after the last. */
NIBBLE_EXPORT nibble_status nibble_request_next(nibble_request* request, nibble_output** output);
/* The whole, at the end. */
NIBBLE_EXPORT nibble_status nibble_request_result(nibble_request* request, nibble_output** output);
NIBBLE_EXPORT void nibble_request_abort(nibble_request* request);
/* Does not end the request. */
NIBBLE_EXPORT void nibble_request_free(nibble_request* request);

/* An index that is none of 0 .. count - 1 gives NULL or 0. */
NIBBLE_EXPORT size_t nibble_output_count(const nibble_output* output); /* n */
NIBBLE_EXPORT int nibble_output_finished(const nibble_output* output);
NIBBLE_EXPORT const char* nibble_output_error(const nibble_output* output); /* or NULL */
NIBBLE_EXPORT const char* nibble_output_text(const nibble_output* output, size_t index);
NIBBLE_EXPORT const char* nibble_output_text_diff(const nibble_output* output, size_t index);
NIBBLE_EXPORT const char* nibble_output_reasoning(const nibble_output* output, size_t index);
/* "stop", "length", "abort", "error"; "" while it goes on. */
NIBBLE_EXPORT const char* nibble_output_finish_reason(const nibble_output* output, size_t index);
NIBBLE_EXPORT const int32_t* nibble_output_token_ids(const nibble_output* output, size_t index,
                                                     size_t* num_token_ids);
/* Of token_ids[token], with the parameter logprobs; NaN without. */
NIBBLE_EXPORT double nibble_output_logprob(const nibble_output* output, size_t index, size_t token);
NIBBLE_EXPORT const int32_t* nibble_output_prompt_token_ids(const nibble_output* output,
                                                            size_t* num_token_ids);
NIBBLE_EXPORT void nibble_output_free(nibble_output* output);

/* Text to token ids, with BOS when add_special_tokens is not 0, and back. nibble_free() the result.
 */
NIBBLE_EXPORT nibble_status nibble_encode(const nibble_llm* llm, const char* text,
                                          int add_special_tokens, int32_t** token_ids,
                                          size_t* num_token_ids);
NIBBLE_EXPORT nibble_status nibble_decode(const nibble_llm* llm, const int32_t* token_ids,
                                          size_t num_token_ids, char** text);
NIBBLE_EXPORT void nibble_free(void* memory);

#ifdef __cplusplus
}
#endif

/* NOLINTEND(readability-identifier-naming) */
