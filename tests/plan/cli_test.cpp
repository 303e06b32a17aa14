// nibble plan as a user runs it: the golden errors, exit codes, output forms.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/base/temporary_folder.h"
#include "tests/cli/run_program.h"
#include "tests/plan/golden.h"

namespace nibble {
namespace {

using testing::at;
using testing::golden;
using ::testing::HasSubstr;
using testing::integer;
using testing::ProgramRun;
using testing::run_nibble;
using testing::str;
using testing::TemporaryFolder;

TEST(PlanCommand, EndsAsTheGoldenFileSays) {
  const auto& cases = *at(golden(), "errors").as_array();
  EXPECT_EQ(cases.size(), 13u);
  for (const JsonValue& row : cases) {
    SCOPED_TRACE(to_json(row, -1));
    std::vector<std::string> arguments;
    for (const JsonValue& word : *at(row, "argv").as_array())
      arguments.push_back(*word.as_string());
    const ProgramRun text = run_nibble(arguments);
    EXPECT_EQ(text.exit_code, integer(row, "exit")) << text.out << text.err;
    EXPECT_THAT(text.out + text.err, HasSubstr(str(row, "message_contains")));
    arguments.emplace_back("--json");
    const ProgramRun json = run_nibble(arguments);
    EXPECT_EQ(json.exit_code, integer(row, "exit"));
    const auto parsed = parse_json(json.out, "output");
    ASSERT_TRUE(parsed) << json.out << json.err;
    EXPECT_EQ(str(*parsed, "schema"), "nibble.plan/1");
    const JsonValue& error = at(*parsed, "error");
    const std::string code = str(row, "code");
    if (!error.is_null()) {
      EXPECT_EQ(str(error, "code"), code);
      EXPECT_NE(parsed->find("request"), nullptr);
    } else {
      // A plan that was made: the verdict is the code, or anything else for "ok".
      const std::string verdict = str(at(*parsed, "plan"), "verdict");
      EXPECT_EQ(verdict == "does_not_fit", code == "does_not_fit") << verdict;
    }
  }
}

TEST(PlanCommand, PlansThisMachineByDefault) {
  const ProgramRun run = run_nibble({"plan", "demo"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("fits"));
}

TEST(PlanCommand, ShowsThePagesTableAndWhyItDiffers) {
  const ProgramRun run = run_nibble({"plan", "deepseek-r1-0528", "--method", "page"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  for (const std::string_view part :
       {"236.18", "240.1", "523.0", "313+", "404.43", "42 % too low"}) {
    EXPECT_THAT(run.out, HasSubstr(std::string(part)));
  }
}

TEST(PlanCommand, PrintsTheTableOfAllDevices) {
  const ProgramRun csv = run_nibble({"plan", "deepseek-r1", "--all-gpus", "--csv"});
  EXPECT_EQ(csv.exit_code, 0) << csv.err;
  EXPECT_EQ(std::count(csv.out.begin(), csv.out.end(), '\n'), 99);
  EXPECT_THAT(csv.out, HasSubstr("unchecked"));
  const ProgramRun json = run_nibble({"plan", "deepseek-r1", "--all-gpus", "--json"});
  EXPECT_EQ(parse_json(json.out, "json")->find("devices")->as_array()->size(), 98u);
  const ProgramRun markdown =
      run_nibble({"plan", "deepseek-r1", "--compare", "--markdown", "--filter", "vendor=NVIDIA",
                  "--filter", "class=datacenter", "--sort", "tok_s"});
  EXPECT_THAT(markdown.out, HasSubstr("| 4x H200 141GB SXM |"));
  EXPECT_THAT(markdown.out, ::testing::Not(HasSubstr("Instinct")));
}

TEST(PlanCommand, FindsTheCheapestSetAndItsCommand) {
  const ProgramRun run =
      run_nibble({"plan", "deepseek-r1", "--find", "gpus", "--batch", "64", "--context", "16384",
                  "--price", "h200-sxm=3", "--price", "b200=6", "--filter", "class=datacenter"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("launch on 4x H200 141GB SXM: nibble serve DIR --tp 4"));
  EXPECT_THAT(run.out, HasSubstr("assumed: "));
}

TEST(PlanCommand, ListsEveryFormat) {
  const ProgramRun run =
      run_nibble({"plan", "deepseek-r1", "--quant", "all", "--gpu", "h100-sxmx16"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  for (const std::string_view part : {"iq2_xxs", "q8_0", "fp8", "bf16", "nvfp4-v1", "713.29",
                                      "largest format that fits: FP8", "launch: nibble serve"}) {
    EXPECT_THAT(run.out, HasSubstr(std::string(part)));
  }
}

TEST(PlanCommand, WritesTheWebPage) {
  const TemporaryFolder folder;
  const ProgramRun run =
      run_nibble({"plan", "deepseek-r1", "--html", (folder / "plan.html").string()});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_GT(std::filesystem::file_size(folder / "plan.html"), 50'000u);
}

TEST(PlanCommand, TakesOtherCatalogues) {
  const TemporaryFolder folder;
  std::ofstream(folder / "more.csv") << "id,name,memory_gb,mem_bw_gbs\nmine,My card,500,3000\n";
  std::ofstream(folder / "bad.csv") << "id,name,memory_gb\nmine,My card\n";
  const ProgramRun good = run_nibble(
      {"plan", "deepseek-r1", "--gpu", "mine", "--gpu-file", (folder / "more.csv").string()});
  EXPECT_EQ(good.exit_code, 0) << good.err;
  const ProgramRun gone = run_nibble(
      {"plan", "deepseek-r1", "--gpu", "h200x8", "--gpus", (folder / "more.csv").string()});
  EXPECT_EQ(gone.exit_code, 3);
  const ProgramRun bad = run_nibble(
      {"plan", "deepseek-r1", "--gpu", "mine", "--gpu-file", (folder / "bad.csv").string()});
  EXPECT_EQ(bad.exit_code, 3);
  EXPECT_THAT(bad.err, HasSubstr("bad.csv line 2: 2 columns, expected 3"));
}

TEST(PlanCommand, RefusesWhatContradictsItself) {
  const std::vector<std::vector<std::string>> cases = {{"--gpu", "m3-ultra-512", "--ram", "64"},
                                                       {"--json", "--csv"},
                                                       {"--all-gpus", "--gpu", "h200x8"},
                                                       {"--sort", "name"},
                                                       {"--markdown", "--gpu", "h200x8"}};
  for (const auto& options : cases) {
    std::vector<std::string> arguments = {"plan", "deepseek-r1"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    EXPECT_EQ(run_nibble(arguments).exit_code, 2) << options.front();
  }
  for (const auto& [option, value] :
       std::vector<std::pair<std::string, std::string>>{{"--ram", "-5"},
                                                        {"--vram", "0"},
                                                        {"--context", "many"},
                                                        {"--context", "1.5"},
                                                        {"--net", "0"},
                                                        {"--ssd", "/no/such/folder"},
                                                        {"--price", "h200-sxm=-1"},
                                                        {"--kv", "int4"},
                                                        {"--parallel", "sideways"},
                                                        {"--find", "happiness"},
                                                        {"--method", "magic"},
                                                        {"--batch", "99999999999999999999"}}) {
    EXPECT_EQ(run_nibble({"plan", "deepseek-r1", option, value}).exit_code, 2) << option << value;
  }
}

}  // namespace
}  // namespace nibble
