// uses_cpp MODEL: exit code 0 when the capital of France is Paris.
#include <nibble/llm.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    nibble::LLM llm(argv[1]);
    const auto outputs =
        llm.generate({"The president of the United States is", "The capital of France is"},
                     {.max_tokens = 32, .temperature = 0})
            .value();
    for (const auto& output : outputs) std::cout << output.prompt << output.text() << "\n";
    return outputs[1].text() == " Paris." ? 0 : 1;
  } catch (const nibble::ResultError& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
