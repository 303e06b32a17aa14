#include "nibble/checkpoint/model_path.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/checkpoint/test_files.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::TempFolder;

// Sets an environment variable until the end of the test.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const std::string& value) : name_(name) {
    const char* old = std::getenv(name);
    had_ = old != nullptr;
    if (had_) old_ = old;
    ::setenv(name, value.c_str(), 1);
  }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;
  ~ScopedVariable() { had_ ? ::setenv(name_, old_.c_str(), 1) : ::unsetenv(name_); }

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

TEST(ResolveModel, TakesExistingPathsAsTheyAre) {
  const TempFolder folder;
  EXPECT_EQ(*resolve_model(folder.path().string()), folder.path());
  testing::write_file(folder / "x.safetensors", "");
  EXPECT_EQ(*resolve_model((folder / "x.safetensors").string()), folder / "x.safetensors");
}

TEST(ResolveModel, FindsNamesInTheListedFoldersBeforeTheBundledOnes) {
  const ScopedVariable none("NIBBLE_MODELS", "");
  EXPECT_EQ(*resolve_model("demo"), NIBBLE_SOURCE_DIR "/models/demo");
  const TempFolder first;
  const TempFolder second;
  std::filesystem::create_directory(second / "demo");
  const ScopedVariable list("NIBBLE_MODELS", first.path().string() + "::" + second.path().string());
  EXPECT_EQ(*resolve_model("demo"), second / "demo");
}

TEST(ResolveModel, FindsTheRevisionThatAHuggingFaceCacheNames) {
  const TempFolder cache;
  const ScopedVariable variable("HF_HUB_CACHE", cache.path().string());
  const auto repository = cache / "models--org--name";
  std::filesystem::create_directories(repository / "refs");
  std::filesystem::create_directories(repository / "snapshots/abc");
  EXPECT_FALSE(resolve_model("org/name"));
  testing::write_file(repository / "refs/main", "abc\n");
  EXPECT_EQ(*resolve_model("org/name"), repository / "snapshots/abc");
  testing::write_file(repository / "refs/main", "../../..");
  EXPECT_FALSE(resolve_model("org/name"));
}

TEST(ResolveModel, ListsTheFoldersItTried) {
  const ScopedVariable list("NIBBLE_MODELS", "/no/such/folder");
  const auto missing = resolve_model("nothing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("no model 'nothing'"));
  EXPECT_THAT(missing.error().message, HasSubstr("/no/such/folder, "));
  EXPECT_THAT(missing.error().message, HasSubstr(NIBBLE_SOURCE_DIR "/models"));
  EXPECT_EQ(resolve_model("").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(resolve_model("/no/such/path").error().message, "/no/such/path does not exist");
  EXPECT_EQ(resolve_model("../nothing").error().message, "../nothing does not exist");
}

}  // namespace
}  // namespace nibble
