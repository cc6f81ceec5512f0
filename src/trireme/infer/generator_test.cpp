#include "trireme/infer/generator.h"

#include <ATen/ops/logsumexp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "trireme/base/error.h"
#include "trireme/execute/evaluation.h"
#include "trireme/infer/evaluation.h"
#include "trireme/model/model_spec.h"
#include "trireme/model/mtp_test_specs.h"
#include "trireme/nn/testing/attention_specs.h"

namespace trireme::infer {
namespace {

const char* kLlama =
    R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96,
  "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "max_position_embeddings": 400, "rms_norm_eps": 1e-5, "initializer_range": 0.4})";
const char* kGpt2 =
    R"({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 96, "n_embd": 32,
  "n_layer": 2, "n_head": 4, "n_positions": 400, "initializer_range": 0.4})";
const char* kQwen3 =
    R"({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 96,
  "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 16, "max_position_embeddings": 400, "rms_norm_eps": 1e-6, "initializer_range": 0.4,
  "tie_word_embeddings": true})";

const char* kMistral =
    R"({"model_type": "mistral", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 400, "initializer_range": 0.4,
  "sliding_window": 70})";
const char* kGemma2 =
    R"({"model_type": "gemma2", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 400,
  "initializer_range": 0.4, "sliding_window": 65, "query_pre_attn_scalar": 8})";
const char* kOlmo2 =
    R"({"model_type": "olmo2", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 400, "initializer_range": 0.4})";

// Attention of the families with experts, on dense layers.
const char* kSinks = "sinks";
const char* kLatent = "latent";
const char* kLatentQueries = "latent queries";
// With modules of multi-token prediction, as training samples from it: they take no part.
const char* kMtp = "mtp";

model::ModelSpec spec_of(const std::string& config) {
  if (config == kMtp) return model::with_mtp(spec_of(kLlama), 2, 0.3);
  if (config == kSinks) return nn::testing::with_sinks(spec_of(kMistral));
  if (config == kLatent || config == kLatentQueries) {
    model::LatentSpec latent;
    latent.query_rank = config == kLatent ? 0 : 20;
    latent.kv_rank = 12;
    latent.nope_dim = 8;
    latent.rope_dim = 6;
    model::ModelSpec spec = spec_of(kLlama);
    for (model::LayerSpec& layer : spec.layers) layer.attention.rotary->interleaved = true;
    return nn::testing::with_latent_attention(spec, latent, 10, config == kLatent);
  }
  return model::spec_from_config(config, "test");
}

class GeneratorTest : public testing::TestWithParam<const char*> {
 protected:
  GeneratorTest() : store_(spec_of(GetParam())), model_((store_.initialize(7), store_)) {}
  nn::ParameterStore store_;
  nn::Model model_;
};

/// The training forward's arg-max after every position of `ids`.
at::Tensor training_forward_logits(nn::Model& model, const std::vector<int32_t>& ids) {
  // A sequence's losses for every possible target would do as well; the logits are quicker.
  const int64_t length = static_cast<int64_t>(ids.size());
  data::Batch batch;
  batch.rows = 1;
  batch.seq_len = length;
  batch.tokens = ids;
  batch.targets.assign(ids.size(), data::kIgnoredTarget);
  for (int64_t t = 0; t < length; ++t) batch.positions.push_back(static_cast<int32_t>(t));
  batch.segments = {{0}};
  const nn::BatchTensors tensors = execute::to_tensors(batch);
  at::Tensor hidden;
  for (int part = 0; part < model.spec().head_part(); ++part) {
    hidden = model.part(part).forward(hidden, tensors, true, nn::SaveMode::kAll).output;
  }
  return model.head().logits(hidden.view({length, -1}));
}

std::vector<int32_t> training_forward_arg_max(nn::Model& model, const std::vector<int32_t>& ids) {
  const at::Tensor logits = training_forward_logits(model, ids);
  std::vector<int32_t> result;
  for (int64_t t = 0; t < logits.size(0); ++t) {
    result.push_back(arg_max({logits.const_data_ptr<float>() + t * logits.size(1),
                              static_cast<size_t>(logits.size(1))}));
  }
  return result;
}

TEST_P(GeneratorTest, GreedyTokensAreTheTrainingForwardsArgMaxOver300Tokens) {
  const std::vector<int32_t> prompt = {5, 17, 3, 80, 41};
  GenerationOptions options;
  options.max_new_tokens = 300;
  options.sampling.temperature = 0.0;
  const Completion completion = generate(model_, nullptr, {prompt}, options)[0];
  ASSERT_EQ(completion.ids.size(), 300u);
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), completion.ids.begin(), completion.ids.end());
  const std::vector<int32_t> expected = training_forward_arg_max(model_, all);
  for (size_t t = 0; t < completion.ids.size(); ++t) {
    ASSERT_EQ(completion.ids[t], expected[prompt.size() - 1 + t]) << "token " << t;
  }
}

TEST_P(GeneratorTest, APromptsResultDoesNotDependOnItsNeighbours) {
  const std::vector<std::vector<int32_t>> prompts = {{1, 2, 3}, {9}, {4, 4, 4, 4, 4, 4, 4, 4, 4}};
  GenerationOptions options;
  options.max_new_tokens = 40;
  options.sampling.temperature = 0.0;
  const auto together = generate(model_, nullptr, prompts, options);
  for (size_t p = 0; p < prompts.size(); ++p) {
    EXPECT_EQ(together[p].ids, generate(model_, nullptr, {prompts[p]}, options)[0].ids)
        << "prompt " << p;
  }
}

TEST_P(GeneratorTest, EndsAtTheContext) {
  GenerationOptions options;
  options.max_new_tokens = 1000;
  const Completion completion =
      generate(model_, nullptr, {std::vector<int32_t>(390, 7)}, options)[0];
  EXPECT_EQ(completion.ids.size(), 10u);
  EXPECT_EQ(completion.finish, Finish::kContext);
}

TEST_P(GeneratorTest, EndsAtAStopIdWithoutShowingIt) {
  GenerationOptions options;
  options.max_new_tokens = 20;
  options.sampling.temperature = 0.0;
  const auto free = generate(model_, nullptr, {{5, 6}}, options)[0].ids;
  options.stop_ids = {free[4]};
  const Completion stopped = generate(model_, nullptr, {{5, 6}}, options)[0];
  const auto first = std::find(free.begin(), free.end(), free[4]);
  EXPECT_EQ(stopped.ids, std::vector<int32_t>(free.begin(), first));
  EXPECT_EQ(stopped.finish, Finish::kEndOfText);
}

TEST_P(GeneratorTest, RefusesWhatItCannotRead) {
  EXPECT_THROW(generate(model_, nullptr, {{}}, {}), Error);
  EXPECT_THROW(generate(model_, nullptr, {{96}}, {}), Error);
  EXPECT_THROW(generate(model_, nullptr, {std::vector<int32_t>(400, 1)}, {}), Error);
  GenerationOptions options;
  options.stop = {"x"};
  EXPECT_THROW(generate(model_, nullptr, {{1}}, options), Error);
}

TEST_P(GeneratorTest, SequenceLossesAreTheNegativeLogProbabilities) {
  // The loss of the arg-max token is at most ln(vocabulary), and a sequence's losses do not depend
  // on what follows.
  const auto losses = sequence_losses(model_, {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {1, 2, 3, 4}, {1}});
  ASSERT_EQ(losses[0].size(), 9u);
  ASSERT_EQ(losses[1].size(), 3u);
  EXPECT_TRUE(losses[2].empty());
  for (size_t t = 0; t < 3; ++t) EXPECT_NEAR(losses[0][t], losses[1][t], 1e-5);

  const std::vector<int32_t> ids = {7, 2, 9, 4, 5, 30, 1};
  const at::Tensor logits = training_forward_logits(model_, ids).to(at::kDouble);
  const at::Tensor log_probabilities = logits - logits.logsumexp(-1, true);
  const auto against = sequence_losses(model_, {ids})[0];
  for (size_t t = 0; t + 1 < ids.size(); ++t) {
    EXPECT_NEAR(against[t], -log_probabilities[static_cast<int64_t>(t)][ids[t + 1]].item<double>(),
                1e-5);
  }
}

std::string family_name(const testing::TestParamInfo<const char*>& info) {
  static const std::vector<std::string> names = {"llama",          "gpt2",  "qwen3", "mistral",
                                                 "gemma2",         "olmo2", "sinks", "latent",
                                                 "latent_queries", "mtp"};
  return names.at(info.index);
}

INSTANTIATE_TEST_SUITE_P(Families, GeneratorTest,
                         testing::Values(kLlama, kGpt2, kQwen3, kMistral, kGemma2, kOlmo2, kSinks,
                                         kLatent, kLatentQueries, kMtp),
                         family_name);

/// LongRoPE turns all positions otherwise once a sequence outgrows the original context: every token must be the one that
/// a forward pass over the text so far prefers.
TEST(LongRopeGenerationTest, KeysAreMadeAnewPastTheOriginalContext) {
  nn::ParameterStore store(model::spec_from_config(
      R"({"model_type": "phi3", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.4,
  "original_max_position_embeddings": 12, "rope_scaling": {"type": "longrope", "short_factor": [1, 1.5, 2, 2.5],
  "long_factor": [3, 5, 7, 9]}})",
      "test"));
  store.initialize(7);
  nn::Model model(store);
  GenerationOptions options;
  options.max_new_tokens = 25;
  options.sampling.temperature = 0.0;
  std::vector<int32_t> text = {3, 14, 15, 9, 2};
  const auto completion = generate(model, nullptr, {text, {7}}, options)[0];
  ASSERT_EQ(completion.ids.size(), 25u);
  for (const int32_t id : completion.ids) {
    EXPECT_EQ(id, training_forward_arg_max(model, text).back())
        << "after " << text.size() << " tokens";
    text.push_back(id);
  }
}

TEST(StopMatcherTest, ShowsNothingOfAStopStringEvenWhenItArrivesInPieces) {
  StopMatcher matcher({"END", "\n\n"});
  EXPECT_EQ(matcher.feed("one E"), "one ");
  EXPECT_EQ(matcher.feed("N"), "");
  EXPECT_EQ(matcher.feed("ough\n"), "ENough");
  EXPECT_EQ(matcher.feed("two EN"), "\ntwo ");
  EXPECT_EQ(matcher.feed("D three"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcherTest, TheEarliestOfSeveralWins) {
  StopMatcher matcher({"later", "now"});
  EXPECT_EQ(matcher.feed("stop now or later"), "stop ");
}

TEST(StopMatcherTest, FinishGivesBackWhatWasHeld) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.feed("EN"), "");
  EXPECT_EQ(matcher.finish(), "EN");
}

TEST(EvaluationTest, ReadsIdLinesAndNamesTheBadOne) {
  EXPECT_EQ(parse_id_lines("[1, 2]\n\n[3]\n", "f"),
            (std::vector<std::vector<int32_t>>{{1, 2}, {3}}));
  for (const char* text : {"", "[1, -2]", "[1.5]", "{}", "[1", "[\"a\"]", "[4294967296]"}) {
    EXPECT_THROW(parse_id_lines(text, "f"), Error) << text;
  }
  try {
    parse_id_lines("[1]\n[x]\n", "ids.jsonl");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("ids.jsonl:2"), std::string::npos) << error.what();
  }
}

TEST(EvaluationTest, ReadsTaskLinesAndNamesWhatIsWrong) {
  const auto items =
      parse_task_lines(R"({"task": "t", "context": "a", "choices": ["b", "c"], "answer": 1})", "f");
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].answer, 1);
  for (const char* text :
       {R"({"context": "a", "choices": ["b"], "answer": 1})", R"({"choices": ["b"], "answer": 0})",
        R"({"context": "a", "choices": [], "answer": 0})",
        R"({"context": "a", "choices": [""], "answer": 0})",
        R"({"context": "a", "choices": ["b"], "answer": 0, "delimiter": 1})", "[]"}) {
    EXPECT_THROW(parse_task_lines(text, "f"), Error) << text;
  }
}

TEST(EvaluationTest, NamesAnUnknownKeyOfATaskAndTheNearest) {
  try {
    parse_task_lines(
        "\n"
        R"({"contxt": "a", "context": "a", "choices": ["b"], "answer": 0})",
        "f");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_EQ(std::string(error.what()), "f:2: there is no key \"contxt\"");
    EXPECT_NE(error.hint().find("context"), std::string::npos) << error.hint();
  }
}

TEST(EvaluationTest, CutsContextsAndRefusesChoicesThatAreLongerThanTheModels) {
  model::ModelSpec spec = model::spec_from_config(
      R"({"model_type": "llama", "vocab_size": 260, "hidden_size": 16, "intermediate_size": 16,
      "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8})",
      "test");
  nn::ParameterStore store(spec);
  store.initialize(7);
  nn::Model model(store);
  const auto bytes = data::make_byte_tokenizer();
  // A token is a byte. Eight positions see all but the last of nine.
  const auto item = [](const std::string& task, const std::string& context, size_t length) {
    TaskItem result{task, context, {"x", std::string(length, 'y')}, "", 0};
    result.line = 12;
    return result;
  };
  const auto results = evaluate_tasks(model, *bytes,
                                      {item("cut", "12345", 4), item("cut", "12345", 5),
                                       item("cut", "12345", 8), item("whole", "123456", 3)});
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].contexts_cut, 2);
  EXPECT_EQ(results[0].count, 3);
  EXPECT_EQ(results[1].contexts_cut, 0);
  try {
    evaluate_tasks(model, *bytes, {item("t", "1", 9)});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_EQ(
        std::string(error.what()),
        "line 12, task \"t\": the choice \"yyyyyyyyy\" has 9 tokens, the model's context is 8");
  }
}

// As lm_eval 0.4's TemplateLM._encode_pair() and loglikelihood() split them; tests/parity/tasks.py asks the package itself.
TEST(EvaluationTest, SplitsContextAndContinuationAsTheHarnessDoes) {
  const auto bytes = data::make_byte_tokenizer();
  const auto text_of = [&](const ContinuationIds& c) {
    const std::span<const int32_t> ids(c.ids);
    return bytes->decode(ids.subspan(0, c.first), false) + "|" +
           bytes->decode(ids.subspan(c.first), false);
  };
  EXPECT_EQ(text_of(encode_continuation(*bytes, "a b", " c")), "a b| c");
  EXPECT_EQ(text_of(encode_continuation(*bytes, "a b \n", "c")), "a b| \nc");
  EXPECT_EQ(text_of(encode_continuation(*bytes, "a\u00a0", "c")), "a|\u00a0c") << "any white space";
  EXPECT_EQ(text_of(encode_continuation(*bytes, "", "c")), "<|endoftext|>|c");
  EXPECT_EQ(text_of(encode_continuation(*bytes, "", "<|endoftext|>c")), "<|endoftext|>|c");
  // A tokenizer that merges across the seam: the context keeps its own ids, the rest is the whole text's.
  const auto merging =
      data::parse_tokenizer(R"({"version": "1.0", "added_tokens": [], "normalizer": null,
      "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": "BPE", "vocab":
      {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, "merges": ["a b", "ab c"]}})",
                            "t");
  const ContinuationIds none = encode_continuation(*merging, "ab", "c");
  EXPECT_EQ(none.ids, (std::vector<int32_t>{3})) << "abc is one id: nothing is left for the choice";
  EXPECT_EQ(none.first, 1u);
  const ContinuationIds some = encode_continuation(*merging, "ca", "bb");
  EXPECT_EQ(some.ids, (std::vector<int32_t>{2, 0, 1})) << "c a | of c ab b";
  EXPECT_EQ(some.first, 2u);
}

TEST(EvaluationTest, FiguresFollowTheirDefinitions) {
  const Evaluation evaluation{.loss_sum = 3 * std::log(2.0), .num_tokens = 3, .num_bytes = 6};
  EXPECT_NEAR(evaluation.perplexity(), 2.0, 1e-12);
  EXPECT_NEAR(evaluation.bits_per_byte(), 0.5, 1e-12);
}

}  // namespace
}  // namespace trireme::infer
