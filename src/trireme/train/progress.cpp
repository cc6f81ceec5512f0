#include "trireme/train/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace trireme::train {

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m {:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h {:02}m", s / 3600, s % 3600 / 60);
  return fmt::format("{}d {:02}h", s / 86400, s % 86400 / 3600);
}

std::string count_text(double count) {
  if (count >= 1e12) return fmt::format("{:.3g}T", count / 1e12);
  if (count >= 1e9) return fmt::format("{:.3g}B", count / 1e9);
  if (count >= 1e6) return fmt::format("{:.3g}M", count / 1e6);
  if (count >= 1e3) return fmt::format("{:.3g}k", count / 1e3);
  return fmt::format("{:.0f}", count);
}

std::string mtp_text(int modules, int64_t parameters) {
  return fmt::format("{} module{}, {} parameters", modules, modules == 1 ? "" : "s",
                     count_text(static_cast<double>(parameters)));
}

std::string bytes_text(double bytes) {
  if (bytes >= 1e12) return fmt::format("{:.3g} TB", bytes / 1e12);
  if (bytes >= 1e9) return fmt::format("{:.3g} GB", bytes / 1e9);
  if (bytes >= 1e6) return fmt::format("{:.3g} MB", bytes / 1e6);
  if (bytes >= 1e3) return fmt::format("{:.3g} kB", bytes / 1e3);
  return fmt::format("{:.0f} bytes", bytes);
}

std::string progress_text(const StepMetrics& m, const ProgressFigures& figures) {
  std::string text = fmt::format("step {}/{} · loss {:.4f}", m.step, figures.steps, m.loss);
  if (m.valid_loss) text += fmt::format(" · valid {:.4f}", *m.valid_loss);
  if (m.valid_bits_per_byte) text += fmt::format(" ({:.3f} bits/byte)", *m.valid_bits_per_byte);
  text += fmt::format(" · {} tokens/s", count_text(m.tokens_per_s));
  if (figures.gemm_tflops > 0)
    text += fmt::format(" · {:.0f} % of GEMM", 100 * m.model_tflops / figures.gemm_tflops);
  text += fmt::format(" · lr {:.2e}", m.lr);
  if (m.step < figures.steps)
    text += fmt::format(" · {} left", duration_text(figures.seconds_left));
  return text;
}

Progress::Progress(int64_t every, bool quiet)
    : every_(every),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) != 0),
      colour_(terminal_ && std::getenv("NO_COLOR") == nullptr) {}

Progress::~Progress() {
  if (shown_) std::fputc('\n', stderr);
}

void Progress::show(const StepMetrics& metrics, const ProgressFigures& figures) {
  if (quiet_) return;
  std::string text = progress_text(metrics, figures);
  const bool last = metrics.step >= figures.steps;
  if (!terminal_) {
    if (metrics.step == 1 || last || metrics.valid_loss || metrics.step % every_ == 0)
      std::fprintf(stderr, "%s\n", text.c_str());
    return;
  }
  winsize size{};
  const int columns =
      ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  constexpr int kBarCells = 20;
  const double share = figures.steps > 0
                           ? static_cast<double>(metrics.step) / static_cast<double>(figures.steps)
                           : 0;
  const int filled = std::clamp(static_cast<int>(share * kBarCells), 0, kBarCells);
  // The separators are two bytes and one column each.
  const auto width = [&text] {
    return static_cast<int>(text.size()) -
           static_cast<int>(std::count(text.begin(), text.end(), '\xc2'));
  };
  std::string bar;
  if (width() + kBarCells + 2 < columns) {
    for (int i = 0; i < kBarCells; ++i) bar += i < filled ? "━" : "─";
    bar = colour_ ? "\x1b[36m" + bar + "\x1b[0m " : bar + " ";
  } else {
    // The learning rate is the first that a narrow terminal can do without.
    const size_t lr = text.find(" · lr ");
    if (width() >= columns && lr != std::string::npos) {
      text.erase(lr, std::min(text.find(" · ", lr + 1), text.size()) - lr);
    }
    while (width() >= columns) {
      const size_t cut = text.rfind(" · ");
      if (cut == std::string::npos) break;
      text.resize(cut);
    }
  }
  std::fprintf(stderr, "\r\x1b[K%s%s", bar.c_str(), text.c_str());
  shown_ = true;
  // An evaluation's figures stay in sight.
  if (metrics.valid_loss || last) {
    std::fputc('\n', stderr);
    shown_ = false;
  }
  std::fflush(stderr);
}

void Progress::clear() {
  if (!shown_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace trireme::train
