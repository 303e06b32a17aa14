// The public page's table, reproduced text for text.
#include <gtest/gtest.h>

#include "nibble/plan/page_method.h"
#include "tests/plan/golden.h"

namespace nibble {
namespace {

using testing::at;
using testing::golden;
using testing::integer;
using testing::num;
using testing::r1;
using testing::str;

std::string fixed(double value, int decimals) {
  char text[64];
  (void)std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

PageModel model_of(const JsonValue& page) {
  return {integer(page, "parameters"), integer(page, "layers"), integer(page, "kv_heads"),
          integer(page, "head_dim"), integer(page, "max_context")};
}

TEST(PageMethod, ReproducesEveryRowOfEveryPage) {
  const auto& pages = *at(at(golden(), "page_method"), "pages").as_array();
  ASSERT_EQ(pages.size(), 3u);
  int cells = 0;
  for (const JsonValue& page : pages) {
    const PageModel model = model_of(page);
    EXPECT_DOUBLE_EQ(page_kv_bytes_per_token(model), num(page, "kv_bytes_per_token"));
    for (const JsonValue& row : *at(page, "rows").as_array()) {
      SCOPED_TRACE(str(page, "model") + " " + str(row, "quant"));
      const PageLevel* level = nullptr;
      for (const PageLevel& l : page_levels()) level = l.name == str(row, "quant") ? &l : level;
      ASSERT_NE(level, nullptr);
      EXPECT_DOUBLE_EQ(level->bits, num(row, "bits"));
      const PageRow ours = page_row(model, *level);
      const JsonValue& printed = at(row, "printed");
      EXPECT_EQ(page_number(ours.vram_gb, 1), fixed(num(printed, "vram_gb"), 1));
      EXPECT_EQ(page_number(ours.context_gb, 1), fixed(num(printed, "context_gb"), 1));
      EXPECT_EQ(page_number(ours.file_gb, 2), fixed(num(printed, "file_gb"), 2));
      const JsonValue& unrounded = at(row, "unrounded");
      EXPECT_NEAR(ours.vram_gb, num(unrounded, "vram_gb"), 0.0050001);
      EXPECT_NEAR(ours.context_gb, num(unrounded, "context_gb"), 0.0050001);
      cells += 3;
    }
  }
  EXPECT_EQ(cells, (16 + 7 + 14) * 3);
}

// The texts beside the table: "283.0", "286.8", "3.9", "313+".
TEST(PageMethod, ReproducesTheTextsBesideTheTable) {
  for (const JsonValue& page : *at(at(golden(), "page_method"), "pages").as_array()) {
    const JsonValue* text = page.find("text");
    if (text == nullptr) continue;
    const PageRow q4 = page_row(model_of(page), page_levels()[11]);
    ASSERT_EQ(q4.level, "Q4_K_M");
    EXPECT_EQ(page_recommended_gb(q4), integer(*text, "recommended_gb"));
    EXPECT_EQ(page_number(q4.context_gb - q4.vram_gb, 1), fixed(num(*text, "context_adds_gb"), 1));
    EXPECT_EQ(page_number(q4.context_gb, 1), fixed(num(*text, "total_gb"), 1));
    if (text->find("overhead_2k_gb") == nullptr) continue;
    EXPECT_EQ(page_number(q4.vram_gb - q4.file_gb, 1), fixed(num(*text, "overhead_2k_gb"), 1));
    EXPECT_EQ(page_number(q4.context_gb - q4.file_gb, 1), fixed(num(*text, "overhead_full_gb"), 1));
  }
}

TEST(PageMethod, CountsTheStoredElementsOfV2) {
  const ModelWeights v2 = testing::golden_weights("v2");
  const PageModel model = page_model(r1(), v2.elements.total());
  EXPECT_EQ(model.parameters, 393632909544);
  EXPECT_EQ(model.head_dim, 56);
  EXPECT_EQ(model.kv_heads, 128);
}

TEST(PageMethod, SaysWhereItIsWrong) {
  const PageModel model = page_model(r1(), 393632909544);
  std::string all;
  for (const PageDifference& d : page_differences(r1(), model))
    all += d.page + " | " + d.fact + "\n";
  for (const std::string_view part :
       {"393.6 B parameters", "671.0 B", "Q4_K_M file 236.18 GB", "404.43 GB", "42 % too low",
        "Q8_0 file 393.63 GB", "713.29 GB", "45 % too low", "full context adds 283.0 GB",
        "11.37 GB in BF16, 5.68 GB in FP8: 25 and 50 times", "523.0 GB", "386.4 + 11.5 GB"}) {
    EXPECT_NE(all.find(part), std::string::npos) << part << "\n" << all;
  }
}

}  // namespace
}  // namespace nibble
