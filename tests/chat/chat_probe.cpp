// Renders chat templates for tests/parity/chat_templates.py. A JSON object a line on stdin:
//   {"template", "messages", "tools", "variables", "add_generation_prompt", "special_tokens", "now",
//    "tokenizer" (folder; optional: ids and mask are wanted, too)}
// and one on stdout: {"text", "answers"[, "ids", "predicted"]} or {"error"}.
#include <iostream>
#include <map>
#include <string>

#include "trireme/base/error.h"
#include "trireme/data/chat_template.h"
#include "trireme/data/tokenizer.h"

int main() {
  using namespace trireme;
  std::string line;
  std::map<std::string, std::unique_ptr<data::Tokenizer>> tokenizers;
  while (std::getline(std::cin, line)) {
    const OrderedJson request = OrderedJson::parse(line);
    OrderedJson answer;
    try {
      std::vector<std::pair<std::string, std::string>> tokens;
      for (const auto& [name, token] : request["special_tokens"].items())
        tokens.emplace_back(name, token.get<std::string>());
      const data::ChatTemplate chat(request["template"], "template", tokens,
                                    request.value("now", 0));
      const data::Conversation conversation{request["messages"],
                                            request.value("tools", OrderedJson()),
                                            request.value("variables", OrderedJson())};
      const auto rendered =
          chat.render(conversation, "line", request.value("add_generation_prompt", false));
      answer["text"] = rendered.text.bytes();
      answer["answers"] = rendered.answers;
      if (request.contains("tokenizer")) {
        auto& tokenizer = tokenizers[request["tokenizer"]];
        if (!tokenizer) tokenizer = data::load_tokenizer(request["tokenizer"]);
        const auto encoded = data::encode_conversation(chat, *tokenizer, conversation, "line");
        answer["ids"] = encoded.ids;
        answer["predicted"] = encoded.predicted;
      }
    } catch (const Error& error) {
      answer = {{"error", error.what()}};
    }
    std::cout << answer.dump() << "\n" << std::flush;
  }
}
