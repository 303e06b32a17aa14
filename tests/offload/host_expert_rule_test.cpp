#include "nibble/offload/host_expert_rule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/offload/expert_preset.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<MissedExpert> one_token_each(int count) {
  std::vector<MissedExpert> missed;
  for (int32_t e = 0; e < count; ++e) missed.push_back({e, 1, static_cast<double>(e)});
  return missed;
}

// By hand, in ms: a copy takes 4. A host that takes 1 computes seven of eight while the link brings
// one (7 against 4; with six it would be 8 of copies); one that takes 4 halves them; one that takes
// 20 computes one of eight (20 < 32) and none of five (20 = 20).
TEST(HostExpertRule, SplitsSoThatBothEndTogether) {
  const auto count = [](int missed, double host, int64_t others = 0) {
    return experts_for_host(one_token_each(missed), others, {4e-3, host, 0}, HostExperts::kAuto)
        .size();
  };
  EXPECT_EQ(count(8, 1e-3), 7u);
  EXPECT_EQ(count(8, 4e-3), 4u);
  EXPECT_EQ(count(8, 20e-3), 1u);
  EXPECT_EQ(count(5, 20e-3), 0u);
  EXPECT_EQ(count(5, 20e-3, 1), 1u) << "the link has another one to bring";
  EXPECT_EQ(count(1, 3.9e-3), 1u);
  EXPECT_EQ(count(1, 4e-3), 0u);
  EXPECT_EQ(count(0, 1e-3), 0u);
}

// For any rates nobody is better off with one expert more or less on the host.
TEST(HostExpertRule, NoNeighbourIsBetter) {
  for (const int missed : {1, 2, 3, 8, 40}) {
    for (const double host : {0.01, 0.3, 1.0, 1.7, 5.0, 39.0, 1000.0}) {
      const auto chosen = static_cast<int>(
          experts_for_host(one_token_each(missed), 0, {1, host, 0}, HostExperts::kAuto).size());
      const auto end = [&](int on_host) {
        return std::max(on_host * host, static_cast<double>(missed - on_host));
      };
      if (chosen > 0) {
        EXPECT_LE(end(chosen), end(chosen - 1)) << missed << " " << host;
      }
      if (chosen < missed) {
        EXPECT_LE(end(chosen), end(chosen + 1)) << missed << " " << host;
      }
    }
  }
}

TEST(HostExpertRule, ExpertsOfManyTokensAndThoseWorthKeepingAreCopied) {
  const std::vector<MissedExpert> missed = {{10, 9, 1}, {11, 1, 5}, {12, 1, 2}, {13, 2, 0}};
  // 1 ms and 1 ms more for each further token, against copies of 3, 2 and 0.4 ms.
  const auto chosen = [&](double copy) {
    return experts_for_host(missed, 0, {copy, 1e-3, 1e-3}, HostExperts::kAuto);
  };
  EXPECT_THAT(chosen(3e-3), ElementsAre(12, 11, 13));
  EXPECT_THAT(chosen(2e-3), ElementsAre(12, 11));
  EXPECT_THAT(chosen(0.4e-3), ElementsAre(12));
}

TEST(HostExpertRule, OffAndAllAskNoRates) {
  EXPECT_THAT(experts_for_host(one_token_each(3), 0, {}, HostExperts::kOff), IsEmpty());
  EXPECT_THAT(experts_for_host(one_token_each(3), 0, {}, HostExperts::kAll), ElementsAre(0, 1, 2));
  EXPECT_THAT(experts_for_host(one_token_each(3), 0, {}, HostExperts::kAuto), IsEmpty());
}

TEST(HostExpertRule, NamesAreChecked) {
  for (const char* name : {"off", "auto", "all"}) {
    EXPECT_EQ(host_experts_name(parse_host_experts(name).value()), name);
  }
  EXPECT_THAT(parse_host_experts("aut").error().message, HasSubstr("did you mean 'auto'"));
}

TEST(ExpertPreset, NamesAreChecked) {
  for (const char* name : {"balanced", "low-latency", "high-throughput"}) {
    EXPECT_EQ(expert_preset_name(parse_expert_preset(name).value()), name);
  }
  EXPECT_THAT(parse_expert_preset("low_latency").error().message,
              HasSubstr("did you mean 'low-latency'"));
}

}  // namespace
}  // namespace nibble
