// The devices of the plug-in that is loaded. Internal to device/.
#pragma once

#include "trireme/device/device.h"

namespace trireme::device {

/// Lives as long as the process. Error{kDevice} if there is no such device. Internal error before load_plugin().
Device& plugin_device(int index);

}  // namespace trireme::device
