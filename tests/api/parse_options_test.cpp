#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/options.h"
#include "nibble/sampling_params.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string llm_message(std::string_view json) {
  const auto options = parse_llm_options(json);
  return options ? "no error" : options.error().message;
}

std::string params_message(std::string_view json) {
  const auto params = parse_sampling_params(json);
  return params ? "no error" : params.error().message;
}

TEST(ParseLlmOptions, NamesAndAliasesReachTheirFields) {
  const auto options = parse_llm_options(R"({
    "model": "demo", "tp_size": 1, "enable_attention_dp": true, "max_batch_size": 4,
    "kv_cache_config": {"free_gpu_memory_fraction": 0.5, "tokens_per_block": 16, "dtype": "fp8"},
    "speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 3,
                           "use_relaxed_acceptance_for_thinking": true, "relaxed_topk": 10,
                           "relaxed_delta": 0.6, "draft_len_schedule": {"1": 3, "8": 1}},
    "moe_config": {"backend": "TRTLLM"}, "cuda_graph_config": {"max_batch_size": 4},
    "trust_remote_code": true, "tokenizer": null})");
  ASSERT_TRUE(options.has_value()) << options.error().message;
  EXPECT_EQ(options->model, "demo");
  EXPECT_TRUE(options->enable_attention_dp);
  EXPECT_EQ(options->max_batch_size, 4);
  EXPECT_EQ(options->kv_cache_config.free_gpu_memory_fraction, 0.5);
  EXPECT_EQ(options->kv_cache_config.tokens_per_block, 16);
  EXPECT_EQ(options->speculative_config->num_nextn_predict_layers, 3);
  EXPECT_EQ(options->speculative_config->relaxed_delta, 0.6);
  EXPECT_EQ(options->speculative_config->draft_len_schedule,
            (std::map<int64_t, int64_t>{{1, 3}, {8, 1}}));
  EXPECT_EQ(options->backend, "auto");
  EXPECT_EQ(parse_llm_options(R"({"moe_config": {"backend": "VANILLA"}})")->backend, "reference");
}

TEST(ParseLlmOptions, UnknownNamesAndWrongTypesAreNamed) {
  EXPECT_EQ(llm_message(R"({"max_batchsize": 4})"),
            "unknown option 'max_batchsize'; did you mean 'max_batch_size'?");
  EXPECT_EQ(llm_message(R"({"max_batch_size": "4"})"),
            "max_batch_size is a string, expected an integer");
  EXPECT_EQ(llm_message(R"({"kv_cache_config": {"dtpe": "fp8"}})"),
            "unknown member of kv_cache_config 'dtpe'; did you mean 'dtype'?");
  EXPECT_EQ(llm_message(R"({"kv_cache_config": {"dtype": 8}})"),
            "kv_cache_config.dtype is an integer, expected a string");
  EXPECT_EQ(llm_message(R"({"kv_cache_config": {"dtype": "int4"}})"),
            "kv_cache_config.dtype is 'int4', expected auto, f32, bf16 or fp8");
  EXPECT_EQ(llm_message(R"({"speculative_config": {"draft_len_schedule": {"x": 1}}})"),
            "speculative_config.draft_len_schedule has the key 'x', expected integers");
  EXPECT_THAT(llm_message("{"), HasSubstr("the options"));
  EXPECT_THAT(llm_message("[]"), HasSubstr("an array, expected an object"));
}

TEST(ParseLlmOptions, WhatCannotBeHonouredIsRefusedByName) {
  EXPECT_EQ(llm_message(R"({"pipeline_parallel_size": 2})"),
            "pipeline_parallel_size is 2, but this build runs a model on one rank; 1 works");
  EXPECT_EQ(llm_message(R"({"pipeline_parallel_size": 1})"), "no error");
  EXPECT_THAT(llm_message(R"({"lora_config": {}})"), HasSubstr("lora_config is not supported"));
  EXPECT_EQ(llm_message(R"({"lora_config": null})"), "no error");
  EXPECT_THAT(
      llm_message(R"({"scheduler_config": {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}})"),
      HasSubstr("\"MAX_UTILIZATION\" works"));
}

TEST(ParseSamplingParams, EveryFieldIsReadAndChecked) {
  const auto params = parse_sampling_params(R"({
    "max_new_tokens": 7, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 4,
    "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3,
    "logit_bias": {"17": -100}, "seed": 9, "n": 2, "best_of": 3, "stop": "END",
    "stop_token_ids": [3, 4], "ignore_eos": false, "bad": ["x"], "logprobs": 5,
    "prompt_logprobs": 0, "guided": {"json": {"type": "object"}}, "thinking": "off",
    "thinking_budget": 8, "relaxed_acceptance": {"topk": 2, "delta": 0.5}, "priority": -1})");
  ASSERT_TRUE(params.has_value()) << params.error().message;
  EXPECT_EQ(params->max_tokens, 7);
  EXPECT_EQ(params->logit_bias.at(17), -100);
  EXPECT_EQ(params->stop, std::vector<std::string>{"END"});
  EXPECT_EQ(params->stop_token_ids, (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(params->guided->json, R"({"type":"object"})");
  EXPECT_EQ(params->relaxed_acceptance->topk, 2);
  EXPECT_FALSE(
      parse_sampling_params(R"({"relaxed_acceptance": false})")->relaxed_acceptance->enabled);
}

TEST(ParseSamplingParams, ErrorsNameFieldValueAndRange) {
  EXPECT_THAT(params_message(R"({"temperature": 3})"),
              HasSubstr("temperature is 3, expected 0..2"));
  EXPECT_THAT(params_message(R"({"top_p": 0})"), HasSubstr("top_p is 0"));
  EXPECT_EQ(params_message(R"({"max_token": 3})"),
            "unknown sampling parameter 'max_token'; did you mean 'max_tokens'?");
  EXPECT_EQ(params_message(R"({"stop": ["a", 3]})"), "stop[1] is an integer, expected a string");
  EXPECT_EQ(params_message(R"({"n": 2.5})"), "n is a number, expected an integer");
  EXPECT_THAT(params_message(R"({"guided": {"gramar": "root ::= x"}})"), HasSubstr("gramar"));
}

}  // namespace
}  // namespace nibble
