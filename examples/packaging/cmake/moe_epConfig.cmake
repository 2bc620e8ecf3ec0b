# moe_epConfig.cmake - what find_package(moe_ep) gives.
# SPDX-License-Identifier: MIT
#   moe_ep::header   the header; one source of the program defines MOE_EP_IMPLEMENTATION
#   moe_ep::moe_ep   the header and the shared library, where one is installed
#   moe_ep::static   the header and the static library, where one is installed
get_filename_component(_moe_ep_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET moe_ep::header)
  find_library(MOE_EP_MATH_LIBRARY m)
  mark_as_advanced(MOE_EP_MATH_LIBRARY)
  add_library(moe_ep::header INTERFACE IMPORTED)
  set_target_properties(moe_ep::header PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${_moe_ep_prefix}/include")
  if(MOE_EP_MATH_LIBRARY)
    set_target_properties(moe_ep::header PROPERTIES INTERFACE_LINK_LIBRARIES "${MOE_EP_MATH_LIBRARY}")
  endif()
endif()

# The libraries lie under the same prefix, in lib, lib64 or lib/<architecture>.
foreach(_moe_ep_kind "moe_ep;SHARED;libmoe_ep.so" "static;STATIC;libmoe_ep.a")
  list(GET _moe_ep_kind 0 _moe_ep_target)
  list(GET _moe_ep_kind 1 _moe_ep_type)
  list(GET _moe_ep_kind 2 _moe_ep_file)
  unset(_moe_ep_library)
  unset(_moe_ep_library CACHE)
  find_library(_moe_ep_library NAMES ${_moe_ep_file} HINTS "${_moe_ep_prefix}/lib" "${_moe_ep_prefix}/lib64"
    "${_moe_ep_prefix}/lib/${CMAKE_LIBRARY_ARCHITECTURE}" NO_DEFAULT_PATH)
  if(_moe_ep_library AND NOT TARGET moe_ep::${_moe_ep_target})
    add_library(moe_ep::${_moe_ep_target} ${_moe_ep_type} IMPORTED)
    set_target_properties(moe_ep::${_moe_ep_target} PROPERTIES IMPORTED_LOCATION "${_moe_ep_library}"
      INTERFACE_LINK_LIBRARIES moe_ep::header)
  endif()
  unset(_moe_ep_library CACHE)
endforeach()
unset(_moe_ep_prefix)
