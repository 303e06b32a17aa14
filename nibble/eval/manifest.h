// What a run was asked: everything that changes an answer, and where it was made.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/eval/run.h"

namespace nibble {

// Everything that changes an answer, as JSON text. Hashes the files. Errors: those of reading them.
Result<std::string> run_identity(const RunSettings& settings, const CompletionTarget& target);

// Writes FOLDER/manifest.json, or holds the one that is there to be the same. Errors: kCorrupt
// naming the fields that differ.
Status check_manifest(const std::filesystem::path& folder, const std::string& identity,
                      const RunSettings& settings);

// Notes in the manifest when a run ended. Errors: those of reading and writing it.
Status finish_manifest(const std::filesystem::path& folder);

// How a task is to be read again for scoring.
struct ManifestTask {
  RunTask run;
  LoadOptions load;
  int samples = 1;
};
// Errors: kCorrupt for a malformed manifest, or a file whose SHA-256 is another one now.
Result<std::vector<ManifestTask>> manifest_tasks(const std::string& manifest);

// What makes two runs measurements of different things: task file, data, prompts, chat template,
// sampling, samples, shuffling. The target may differ: that is what is compared. Texts for people.
// `task`: the name of one that both have.
std::vector<std::string> manifest_differences(const std::string& a, const std::string& b,
                                              const std::string& task);

}  // namespace nibble
