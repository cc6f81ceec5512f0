// Where a model's parameters live.
//
// Each part's parameters lie one after the other in one flat buffer, in the order of
// ModelSpec::parameters, so that query, key and value (gate and up) form one matrix and an
// optimizer runs over flat memory. With a compute dtype other than the master's there is a second
// flat buffer per part; of the masters a rank may then have a slice alone. What products read of a part may
// be there only now and then (ZeRO 3): such a part has two buffers too, and the second has memory from
// make_room() to drop(). A rank of a pipeline has some parts only: the others are described here and have no
// memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/model/element_range.h"
#include "trireme/model/model_spec.h"

namespace trireme::nn {

/// Owns the parameters. Views share the flat buffers' storage and stay valid as long as the store.
/// Thread-safety: reads may run at the same time; initialize(), refresh_compute(), make_room() and drop() need it alone.
class ParameterStore {
 public:
  /// Allocates without filling: call initialize() or write every master. `compute_dtype` is what
  /// the products use (kFloat or kBFloat16; kDouble in gradient checks); `master_dtype` kFloat (or
  /// kDouble). Both lie on `device`.
  /// `masters`: by part, the elements whose masters are held, empty for all of every part; all it must be without a compute
  /// copy, and of a part with a selection bias, which is read as it is.
  /// `parts`: by part, whether it is here; empty: all.
  /// `gathered`: by part, whether what products read is there only from make_room() to drop(); empty: of none.
  ParameterStore(model::ModelSpec spec, at::ScalarType compute_dtype = at::kFloat,
                 at::ScalarType master_dtype = at::kFloat, at::Device device = at::kCPU,
                 const std::vector<model::ElementRange>& masters = {},
                 const std::vector<char>& parts = {}, const std::vector<char>& gathered = {});

  const model::ModelSpec& spec() const { return spec_; }
  at::ScalarType compute_dtype() const { return compute_dtype_; }
  at::ScalarType master_dtype() const { return master_dtype_; }
  at::Device device() const { return device_; }
  /// True when products use a lower precision than the master's: two buffers per part.
  bool has_compute_copy() const { return compute_dtype_ != master_dtype_; }

  int num_parts() const { return static_cast<int>(part_numel_.size()); }
  int num_parameters() const { return static_cast<int>(offsets_.size()); }
  bool has_part(int part) const { return parts_[part] != 0; }
  /// Of a part that is not here too.
  int64_t part_numel(int part) const { return part_numel_[part]; }
  /// Indices into ModelSpec::parameters of one part, in order.
  const std::vector<int>& part_parameters(int part) const { return part_parameters_[part]; }
  /// Offset in elements of a parameter in its part's flat buffer.
  int64_t offset(int parameter) const { return offsets_[parameter]; }

  /// The elements of a part whose masters are here.
  model::ElementRange master_range(int part) const { return master_ranges_[part]; }
  bool has_whole_master(int part) const {
    return has_part(part) && master_ranges_[part].count() == part_numel_[part];
  }

  /// Whether what products read of a part that is here has memory only from make_room() to drop(). Nothing is in it until somebody
  /// fills it; reading it without memory is an error or ends the process.
  bool is_gathered(int part) const { return has_part(part) && gathered_[part] != 0; }
  /// Of a part that is_gathered() and has no memory: allocates it, on the device's compute queue.
  void make_room(int part);
  /// Of one that has: gives it back. Views stay as they are, without data.
  void drop(int part);

  /// Flat buffers of one part, shape [part_numel]; of the masters [master_range(part).count()]. compute() is master() without
  /// a compute copy, but of a part that is_gathered().
  const at::Tensor& part_master(int part) const { return master_[part]; }
  const at::Tensor& part_compute(int part) const { return compute_[part]; }

  /// Named views with the parameter's shape; master() of parts that have whole masters.
  at::Tensor master(int parameter) const { return view(master_[part_of(parameter)], parameter); }
  at::Tensor compute(int parameter) const { return view(compute_[part_of(parameter)], parameter); }
  at::Tensor master(const std::string& name) const;  ///< throws Error{kInternal} if absent
  /// Sets a parameter of a part that is here from a tensor of its shape: the masters that are here, and the compute copy.
  void set(int parameter, const at::Tensor& values);
  /// The view of one parameter in any flat buffer laid out like its part (gradients, optimizer
  /// states).
  at::Tensor view(const at::Tensor& flat, int parameter) const;
  /// `first` and the `count - 1` parameters after it as one matrix: rows added up, same columns.
  /// For vectors (biases) one longer vector.
  at::Tensor fused_view(const at::Tensor& flat, int first, int count) const;

  /// Fills every master that is here by its InitSpec and refreshes the compute copy. The bits of an element
  /// depend on (seed, parameter name, element index in the whole tensor) alone: not on threads, order, other
  /// parameters or what of them is here.
  void initialize(uint64_t seed);
  /// compute = master rounded to the compute dtype, of the elements of one part or all that have masters. Nothing without a
  /// compute copy, nor where it has no memory.
  void refresh_compute(int part);
  void refresh_compute();

 private:
  int part_of(int parameter) const { return spec_.parameters[parameter].part; }
  bool has_room(int part) const;
  model::ElementRange held_of(int parameter) const;
  void fill(int parameter, uint64_t seed, int64_t first, at::Tensor values) const;

  model::ModelSpec spec_;
  at::ScalarType compute_dtype_;
  at::ScalarType master_dtype_;
  at::Device device_;
  std::vector<char> parts_;
  std::vector<char> gathered_;
  std::vector<int64_t> part_numel_;
  std::vector<std::vector<int>> part_parameters_;
  std::vector<int64_t> offsets_;
  std::vector<model::ElementRange> master_ranges_;
  std::vector<at::Tensor> master_;
  std::vector<at::Tensor> compute_;
};

/// A view of what a rank has of a whole tensor of that parameter; all of it where the parameter is no stretch.
at::Tensor stretch(const at::Tensor& whole, const model::ParameterSpec& parameter);

/// Element `index` of the normal N(0, 1) stream of (seed, name). Counter-based: any element alone.
double normal_at(uint64_t seed, const std::string& name, uint64_t index);

}  // namespace trireme::nn
