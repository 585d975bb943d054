#include "binding/operands.h"

#include <cmath>

#include "binding/task.h"

namespace lowrank_attention {

Operands::Operands(const Napi::CallbackInfo& info, std::size_t operands, std::size_t numbers) : env_(info.Env()) {
  for (napi_value value : elementsOf(info[CallArguments::kOperands])) operands_.push_back({value, elementsOf(value)});
  if (operands_.size() < operands) fail("operands", "wrong count");
  const auto is = [&](std::size_t index, napi_valuetype type) {
    const napi_valuetype found = info[index].Type();
    return found == type || found == napi_undefined;
  };
  if (!is(CallArguments::kThreads, napi_number)) fail("threads", "not a number");
  if (!is(CallArguments::kIsa, napi_string)) fail("isa", "not a string");
  const Array array = arrayOf(env_, info[CallArguments::kNumbers]);
  if (!array.present || array.type != napi_float64_array || array.bytes / sizeof(double) < numbers) {
    fail("numbers", "wrong count");
    return;
  }
  numbers_ = static_cast<const double*>(array.data);
  numberCount_ = array.bytes / sizeof(double);
}

std::vector<napi_value> Operands::elementsOf(napi_value list) const {
  std::vector<napi_value> elements;
  std::uint32_t count = 0;
  bool isArray = false;
  if (napi_is_array(env_, list, &isArray) != napi_ok || !isArray) return elements;
  if (napi_get_array_length(env_, list, &count) != napi_ok) return elements;
  for (std::uint32_t i = 0; i < count; ++i) {
    napi_value element = nullptr;
    napi_valuetype type = napi_undefined;
    // An accessor has thrown: its exception goes on its way.
    if (napi_get_element(env_, list, i, &element) != napi_ok) throw Napi::Error::New(env_);
    if (napi_typeof(env_, element, &type) != napi_ok || type == napi_undefined) break;
    elements.push_back(element);
  }
  return elements;
}

napi_value Operands::value(std::size_t index, std::size_t item) const {
  if (index >= operands_.size() || item >= operands_[index].entries.size()) return nullptr;
  return operands_[index].entries[item];
}

Array Operands::arrayOf(napi_env env, napi_value value) {
  Array array;
  bool typed = false;
  if (value == nullptr || napi_is_typedarray(env, value, &typed) != napi_ok || !typed) return array;
  std::size_t length = 0;
  if (napi_get_typedarray_info(env, value, &array.type, &length, &array.data, nullptr, nullptr) != napi_ok)
    return array;
  std::size_t width = 0;
  switch (array.type) {
    case napi_float32_array:
    case napi_int32_array:
      width = 4;
      break;
    case napi_float64_array:
      width = 8;
      break;
    case napi_uint16_array:
      width = 2;
      break;
    case napi_uint8_array:
      width = 1;
      break;
    default:
      return array;
  }
  array.bytes = length * width;
  array.present = true;
  return array;
}

Index Operands::extent(std::size_t index, const char* name, Index low) {
  const double value = numbers_[index];
  if (!(value >= static_cast<double>(low) && value <= kMaxExtent) || value != std::floor(value)) {
    fail(name, "not a whole number in range");
    return low;
  }
  return static_cast<Index>(value);
}

Index Operands::position(std::size_t index, const char* name) {
  const double value = numbers_[index];
  if (!(std::fabs(value) <= kMaxExtent)) {
    fail(name, "not a number in range");
    return 0;
  }
  return static_cast<Index>(value);
}

DataType Operands::dataType(std::size_t index, const char* name) {
  const double value = numbers_[index];
  if (value == 0) return DataType::kFloat32;
  if (value == 1) return DataType::kFloat16;
  if (value == 2) return DataType::kBfloat16;
  fail(name, "unknown element type");
  return DataType::kFloat32;
}

void* Operands::tensor(const Array& array, const char* name, DataType type, std::initializer_list<Index> factors) {
  const napi_typedarray_type kind = type == DataType::kFloat32 ? napi_float32_array : napi_uint16_array;
  return memory(array, name, kind, static_cast<std::size_t>(elementBytes(type)), factors);
}

void* Operands::memory(const Array& array, const char* name, napi_typedarray_type type, std::size_t width,
                       std::initializer_list<Index> factors) {
  unsigned __int128 bytes = width;
  for (const Index factor : factors) {
    bytes *= static_cast<unsigned __int128>(factor);
    // Saturates long before 128 bits overflow; zero stays zero.
    if (bytes > (static_cast<unsigned __int128>(1) << 62)) bytes = static_cast<unsigned __int128>(1) << 62;
  }
  if (!array.present || array.type != type || array.bytes < bytes) fail(name, "an array that changed meanwhile");
  return array.data;
}

}  // namespace lowrank_attention
