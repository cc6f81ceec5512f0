// The wheel's own fmt, compiled once. The wheel ships its headers and no library: as a header-only library every
// file that formats a message compiles all of it again, half of the time of such a file.
#include <fmt/format-inl.h>

FMT_BEGIN_NAMESPACE
namespace detail {
template FMT_API dragonbox::decimal_fp<float> dragonbox::to_decimal(float x) noexcept;
template FMT_API dragonbox::decimal_fp<double> dragonbox::to_decimal(double x) noexcept;
template FMT_API thousands_sep_result<char> thousands_sep_impl(locale_ref loc);
template FMT_API char decimal_point_impl(locale_ref loc);
}  // namespace detail
FMT_END_NAMESPACE
