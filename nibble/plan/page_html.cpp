#include <string>

#include "nibble/plan/embedded.h"
#include "nibble/plan/report_json.h"
#include "nibble/plan/report_text.h"

namespace nibble {

std::string page_html(const PlanModel& model, const PlanRequest& request,
                      const std::string& format_title, const std::vector<DeviceSet>& sets) {
  JsonValue data = sets_json(model, request, sets);
  data.set("format", JsonValue::string(format_title));
  // A "</script>" in a name would end the element: '<' is written as its escape.
  std::string escaped;
  for (const char c : to_json(data, -1)) {
    if (c == '<') {
      escaped += "\\u003c";
    } else {
      escaped += c;
    }
  }
  std::string page(kPageHtml);
  constexpr std::string_view kPlace = "@DATA@";
  page.replace(page.find(kPlace), kPlace.size(), escaped);
  return page;
}

}  // namespace nibble
