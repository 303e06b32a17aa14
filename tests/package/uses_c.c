/* uses_c MODEL: what the C interface promises, looked at from C. Prints the first thing that is not
 * so, and exits with 1. */
#include <nibble/nibble.h>
#include <stdio.h>
#include <string.h>

#define EXPECT(condition)                                                            \
  do {                                                                               \
    if (!(condition)) {                                                              \
      fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, \
              nibble_last_error());                                                  \
      return 1;                                                                      \
    }                                                                                \
  } while (0)

struct stream {
  char text[4096];
  int calls;
  int finished;
};

static int collect(const nibble_output* output, void* user_data) {
  struct stream* stream = user_data;
  strncat(stream->text, nibble_output_text_diff(output, 0),
          sizeof(stream->text) - strlen(stream->text) - 1);
  ++stream->calls;
  stream->finished = nibble_output_finished(output);
  return 0;
}

static int stop_at_once(const nibble_output* output, void* user_data) {
  (void)output;
  (void)user_data;
  return 1;
}

static int check_errors(const char* model, nibble_llm* llm) {
  nibble_llm* none = NULL;
  nibble_output* output = NULL;
  EXPECT(nibble_llm_load("no/such/model", NULL, &none) == NIBBLE_NOT_FOUND);
  EXPECT(none == NULL && strstr(nibble_last_error(), "no/such/model") != NULL);
  EXPECT(nibble_llm_load(model, "{\"tensor_parallel_size\": 8}", &none) == NIBBLE_INVALID_ARGUMENT);
  EXPECT(none == NULL && strstr(nibble_last_error(), "tp_size 8") != NULL);
  EXPECT(strstr(nibble_last_error(), "1x1, 2x1, 2x2") != NULL);
  EXPECT(nibble_llm_load(model, "{", &none) == NIBBLE_INVALID_ARGUMENT);
  EXPECT(nibble_llm_load(NULL, NULL, &none) == NIBBLE_INVALID_ARGUMENT);
  EXPECT(nibble_generate(llm, "x", "{\"temperature\": 3}", &output) == NIBBLE_INVALID_ARGUMENT);
  EXPECT(output == NULL && strstr(nibble_last_error(), "temperature is 3") != NULL);
  EXPECT(nibble_generate(llm, NULL, NULL, &output) == NIBBLE_INVALID_ARGUMENT);
  EXPECT(nibble_generate_ids(llm, NULL, 0, NULL, &output) == NIBBLE_INVALID_ARGUMENT);
  return 0;
}

static int check_streams(nibble_llm* llm, const char* expected) {
  struct stream stream = {"", 0, 0};
  nibble_request* request = NULL;
  nibble_output* output = NULL;
  EXPECT(nibble_start(llm, "Hello, my name is", "{\"temperature\": 0}", collect, &stream,
                      &request) == NIBBLE_OK);
  EXPECT(nibble_request_result(request, &output) == NIBBLE_OK);
  EXPECT(strcmp(nibble_output_text(output, 0), expected) == 0);
  nibble_output_free(output);
  /* The last call of the callback may still be under way. */
  while (nibble_request_next(request, &output) == NIBBLE_OK && output != NULL) {
    nibble_output_free(output);
  }
  nibble_request_free(request);

  EXPECT(nibble_start(llm, "Hello", "{\"temperature\": 0, \"ignore_eos\": true}", stop_at_once,
                      NULL, &request) == NIBBLE_OK);
  EXPECT(nibble_request_result(request, &output) == NIBBLE_OK);
  EXPECT(strcmp(nibble_output_finish_reason(output, 0), "abort") == 0);
  nibble_output_free(output);
  nibble_request_free(request);

  EXPECT(nibble_start(llm, "Hello", "{\"temperature\": 0, \"ignore_eos\": true}", NULL, NULL,
                      &request) == NIBBLE_OK);
  EXPECT(nibble_request_next(request, &output) == NIBBLE_OK);
  EXPECT(!nibble_output_finished(output));
  nibble_output_free(output);
  nibble_request_abort(request);
  EXPECT(nibble_request_result(request, &output) == NIBBLE_OK);
  EXPECT(strcmp(nibble_output_finish_reason(output, 0), "abort") == 0);
  nibble_output_free(output);
  nibble_request_free(request);

  EXPECT(stream.finished && stream.calls > 3 && strcmp(stream.text, expected) == 0);
  return 0;
}

int main(int argc, char** argv) {
  nibble_llm* llm = NULL;
  nibble_output* output = NULL;
  nibble_output* chat = NULL;
  int32_t* ids = NULL;
  char* text = NULL;
  size_t count = 0;
  int failed = 0;
  if (argc != 2) return 2;
  EXPECT(nibble_llm_load(argv[1], "{\"max_batch_size\": 4}", &llm) == NIBBLE_OK);
  EXPECT(strcmp(nibble_version(), "0.1.0") == 0);
  EXPECT(nibble_llm_vocab_size(llm) == 4096 && nibble_llm_max_seq_len(llm) == 4096);

  EXPECT(nibble_encode(llm, "The capital of France is", 1, &ids, &count) == NIBBLE_OK);
  EXPECT(count == 6 && ids[0] == 0);
  EXPECT(nibble_decode(llm, ids + 1, count - 1, &text) == NIBBLE_OK);
  EXPECT(strcmp(text, "The capital of France is") == 0);
  EXPECT(nibble_generate_ids(llm, ids, count, "{\"temperature\": 0, \"logprobs\": 0}", &output) ==
         NIBBLE_OK);
  EXPECT(nibble_output_count(output) == 1 && nibble_output_finished(output));
  EXPECT(strcmp(nibble_output_text(output, 0), " Paris.") == 0);
  EXPECT(strcmp(nibble_output_finish_reason(output, 0), "stop") == 0);
  EXPECT(nibble_output_error(output) == NULL);
  EXPECT(nibble_output_token_ids(output, 0, &count)[0] == 1906 && count == 3);
  EXPECT(nibble_output_logprob(output, 0, 0) < 0 && nibble_output_logprob(output, 0, 0) > -0.1);
  EXPECT(nibble_output_logprob(output, 0, 3) != nibble_output_logprob(output, 0, 3));
  EXPECT(nibble_output_text(output, 1) == NULL);
  EXPECT(nibble_output_prompt_token_ids(output, &count)[1] == ids[1] && count == 6);
  nibble_output_free(output);
  nibble_free(ids);
  nibble_free(text);

  EXPECT(nibble_chat(llm, "[{\"role\": \"user\", \"content\": \"What is 384 + 597?\"}]",
                     "{\"temperature\": 0}", &chat) == NIBBLE_OK);
  EXPECT(strstr(nibble_output_text(chat, 0), "981") != NULL);
  EXPECT(strlen(nibble_output_reasoning(chat, 0)) > 0);
  nibble_output_free(chat);

  EXPECT(nibble_generate(llm, "Hello, my name is", "{\"temperature\": 0}", &output) == NIBBLE_OK);
  failed = check_errors(argv[1], llm) || check_streams(llm, nibble_output_text(output, 0));
  nibble_output_free(output);
  nibble_llm_free(llm);
  nibble_llm_free(NULL);
  if (!failed) puts("the C interface works");
  return failed;
}
