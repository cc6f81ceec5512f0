// The one folder that a model may have beside its files.
#pragma once

namespace trireme::checkpoint {

/// Chat templates beside a model's default one, as transformers saves them: additional_chat_templates/NAME.jinja.
inline constexpr const char* kTemplateFolder = "additional_chat_templates";

}  // namespace trireme::checkpoint
