#include "nibble/comm/rank_interfaces.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <net/if.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "nibble/base/error.h"

namespace nibble {
namespace {

std::vector<std::string> interfaces_here() {
  std::vector<std::string> names;
  struct if_nameindex* const all = ::if_nameindex();
  for (auto* one = all; one != nullptr && one->if_index != 0; ++one) names.push_back(one->if_name);
  ::if_freenameindex(all);
  return names;
}

}  // namespace

Status restrict_rank_traffic(std::string_view interfaces) {
  if (interfaces.empty()) return {};
  for (size_t begin = 0; begin <= interfaces.size();) {
    const size_t end = std::min(interfaces.find(',', begin), interfaces.size());
    const std::string name(interfaces.substr(begin, end - begin));
    if (name.empty() || ::if_nametoindex(name.c_str()) == 0) {
      return invalid_argument(fmt::format("there is no network interface '{}' here, but {}", name,
                                          fmt::join(interfaces_here(), ", ")));
    }
    begin = end + 1;
  }
  const std::string list(interfaces);
  for (const char* const variable :
       {"OMPI_MCA_btl_tcp_if_include", "UCX_NET_DEVICES", "NCCL_SOCKET_IFNAME"}) {
    ::setenv(variable, list.c_str(), 1);
  }
  return {};
}

}  // namespace nibble
