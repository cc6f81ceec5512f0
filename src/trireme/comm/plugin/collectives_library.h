// Which library of collectives a type of device has.
#pragma once

#include <string>

namespace trireme::comm {

/// device.collectives of the run file, before groups are made: a library's path (a path without a folder is in the working
/// directory), "host" for transfers through the host's memory, or "" for what is found: libtrireme_TYPE_collectives.so in the
/// folders of TRIREME_DEVICE_PATH, beside the program, or in ../lib/trireme of it; through the host's memory if there is none.
/// `device` is a name as get_device() takes it. Opens the library. Error{kConfig} that names the path where it does not open, has
/// no collectives, or was built for another torch or Trireme. Thread-safe.
void use_collectives(const std::string& device, const std::string& path);

/// The open library's path for the type of device, "" for none: the host's memory. Thread-safe.
std::string collectives_of(const std::string& type);

}  // namespace trireme::comm
