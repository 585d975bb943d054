// Reading a call's operands and numbers. Checks for memory safety only: that every array is of the kind said and long
// enough for what the kernel will touch. lib/ has already told the caller what is wrong in his own terms; a failure
// here means that memory changed hands meanwhile, or a fault in lib/. That memory is neither shared nor resizable is
// lib's to see: N-API cannot tell.
//
// Nothing of the caller's may run between looking at an array's memory and using it: an accessor or a valueOf could
// detach it. So the constructor reads every value first, and refuses what would have to be coerced.
#ifndef LOWRANK_ATTENTION_BINDING_OPERANDS_H_
#define LOWRANK_ATTENTION_BINDING_OPERANDS_H_

#include <napi.h>

#include <vector>

#include "core/types.h"

namespace lowrank_attention {

// A typed array of the caller, or none.
struct Array {
  void* data = nullptr;
  std::size_t bytes = 0;
  napi_typedarray_type type = napi_uint8_array;
  bool present = false;
};

// Extents are at most this, so that products of three stay far from overflow in 128 bits and lengths fit a double.
constexpr double kMaxExtent = 9007199254740992.0;  // 2^53

// Elements of all heads that a cache may keep of one position: what memory bounds otherwise is not there yet.
constexpr double kMaxRow = 2147483647;

class Operands {
 public:
  // Expects at least so many operands and numbers.
  Operands(const Napi::CallbackInfo& info, std::size_t operands, std::size_t numbers);

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  // The first failure counts.
  void fail(const Status& status) {
    if (ok()) status_ = status;
  }
  void fail(const char* argument, const char* detail) { fail({Code::kArgument, argument, detail}); }

  double number(std::size_t index) const { return numbers_[index]; }
  std::size_t numberCount() const { return numberCount_; }
  // A whole number in [low, 2^53].
  Index extent(std::size_t index, const char* name, Index low = 0);
  // A number in [-2^53, 2^53], cut to a whole one.
  Index position(std::size_t index, const char* name);
  bool flag(std::size_t index) const { return numbers_[index] != 0; }
  DataType dataType(std::size_t index, const char* name);

  // Entry of an operand that is a list; the operand itself is read by `array`. Absent is null.
  Array entry(std::size_t index, std::size_t item) const { return arrayOf(env_, value(index, item)); }
  napi_value value(std::size_t index, std::size_t item) const;
  Array array(std::size_t index) const {
    return arrayOf(env_, index < operands_.size() ? operands_[index].value : nullptr);
  }
  // Absent where the value is no typed array that an operand may be. Runs nothing of the caller's, and does not throw.
  static Array arrayOf(napi_env env, napi_value value);

  // The memory of an operand that must hold at least the product of the factors in elements of the given kind.
  void* tensor(const Array& array, const char* name, DataType type, std::initializer_list<Index> factors);
  // The same for an operand of another kind of array.
  template <class T>
  T* required(std::size_t index, const char* name, napi_typedarray_type type, std::initializer_list<Index> factors) {
    return static_cast<T*>(memory(array(index), name, type, sizeof(T), factors));
  }
  // The same for float32, float64, uint8 or int32 operands that may be absent (null).
  template <class T>
  T* optional(std::size_t index, const char* name, napi_typedarray_type type, std::initializer_list<Index> factors) {
    const Array array = this->array(index);
    return array.present ? static_cast<T*>(memory(array, name, type, sizeof(T), factors)) : nullptr;
  }
  template <class T>
  T* optional(std::size_t index, const char* name, napi_typedarray_type type, Index count) {
    return optional<T>(index, name, type, std::initializer_list<Index>{count});
  }

 private:
  struct Operand {
    napi_value value = nullptr;
    std::vector<napi_value> entries;
  };

  // The memory of an array that must be of a kind and hold at least the product of the factors in elements of `width`.
  void* memory(const Array& array, const char* name, napi_typedarray_type type, std::size_t width,
               std::initializer_list<Index> factors);
  // Elements of a JavaScript array up to the first hole; none of what is no array.
  std::vector<napi_value> elementsOf(napi_value list) const;

  napi_env env_;
  std::vector<Operand> operands_;
  const double* numbers_ = nullptr;
  std::size_t numberCount_ = 0;
  Status status_;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_OPERANDS_H_
