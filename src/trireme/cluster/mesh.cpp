#include "trireme/cluster/mesh.h"

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::cluster {

const char* to_string(Dimension dimension) {
  switch (dimension) {
    case Dimension::kTensor:
      return "tensor";
    case Dimension::kContext:
      return "context";
    case Dimension::kData:
      return "data";
    case Dimension::kPipeline:
      return "pipeline";
    case Dimension::kDataContext:
      return "data-context";
    case Dimension::kStage:
      return "stage";
    case Dimension::kShard:
      return "shard";
    case Dimension::kReplicate:
      return "replicate";
    case Dimension::kExpertTensor:
      return "expert-tensor";
    case Dimension::kExpert:
      return "expert";
    case Dimension::kExpertData:
      return "expert-data";
  }
  return "?";
}

Mesh::Mesh(const MeshShape& shape) : shape_(shape) {
  TRIREME_CHECK(std::min({shape.dp, shape.tp, shape.pp, shape.cp, shape.ep, shape.etp}) >= 1 &&
                    shape.shard >= 0,
                "mesh of dp {} tp {} pp {} cp {} ep {} etp {} shard {}", shape.dp, shape.tp,
                shape.pp, shape.cp, shape.ep, shape.etp, shape.shard);
  TRIREME_CHECK(stage_size() % (shape.ep * shape.etp) == 0,
                "ep {} x etp {} does not divide {} ranks of a stage", shape.ep, shape.etp,
                stage_size());
  TRIREME_CHECK(shape.dp % shard_size() == 0, "shard {} does not divide dp {}", shape.shard,
                shape.dp);
}

Coordinates Mesh::coordinates(int rank) const {
  TRIREME_CHECK(rank >= 0 && rank < size(), "rank {} of {}", rank, size());
  Coordinates where;
  where.tp = rank % shape_.tp;
  rank /= shape_.tp;
  where.cp = rank % shape_.cp;
  rank /= shape_.cp;
  where.dp = rank % shape_.dp;
  where.pp = rank / shape_.dp;
  return where;
}

int Mesh::rank(const Coordinates& where) const {
  return ((where.pp * shape_.dp + where.dp) * shape_.cp + where.cp) * shape_.tp + where.tp;
}

ExpertCoordinates Mesh::expert_coordinates(int rank) const {
  TRIREME_CHECK(rank >= 0 && rank < size(), "rank {} of {}", rank, size());
  ExpertCoordinates where;
  where.etp = rank % shape_.etp;
  rank /= shape_.etp;
  where.ep = rank % shape_.ep;
  rank /= shape_.ep;
  where.edp = rank % expert_data_size();
  where.pp = rank / expert_data_size();
  return where;
}

int Mesh::rank(const ExpertCoordinates& where) const {
  return ((where.pp * expert_data_size() + where.edp) * shape_.ep + where.ep) * shape_.etp +
         where.etp;
}

int Mesh::group_id(Dimension dimension, int rank) const {
  // The rank of the group's first member.
  Coordinates at = coordinates(rank);
  ExpertCoordinates expert = expert_coordinates(rank);
  switch (dimension) {
    case Dimension::kTensor:
      at.tp = 0;
      return this->rank(at);
    case Dimension::kContext:
      at.cp = 0;
      return this->rank(at);
    case Dimension::kData:
      at.dp = 0;
      return this->rank(at);
    case Dimension::kPipeline:
      at.pp = 0;
      return this->rank(at);
    case Dimension::kDataContext:
      at.dp = at.cp = 0;
      return this->rank(at);
    case Dimension::kStage:
      return at.pp * stage_size();
    case Dimension::kShard:
      at.dp -= at.dp % shard_size();
      at.cp = 0;
      return this->rank(at);
    case Dimension::kReplicate:
      at.dp %= shard_size();
      return this->rank(at);
    case Dimension::kExpertTensor:
      expert.etp = 0;
      return this->rank(expert);
    case Dimension::kExpert:
      expert.ep = 0;
      return this->rank(expert);
    case Dimension::kExpertData:
      expert.edp = 0;
      return this->rank(expert);
  }
  TRIREME_CHECK(false, "dimension {}", static_cast<int>(dimension));
}

int Mesh::group_size(Dimension dimension) const {
  switch (dimension) {
    case Dimension::kTensor:
      return shape_.tp;
    case Dimension::kContext:
      return shape_.cp;
    case Dimension::kData:
      return shape_.dp;
    case Dimension::kPipeline:
      return shape_.pp;
    case Dimension::kDataContext:
      return shape_.dp * shape_.cp;
    case Dimension::kStage:
      return stage_size();
    case Dimension::kShard:
      return shard_size() * shape_.cp;
    case Dimension::kReplicate:
      return shape_.dp / shard_size();
    case Dimension::kExpertTensor:
      return shape_.etp;
    case Dimension::kExpert:
      return shape_.ep;
    case Dimension::kExpertData:
      return expert_data_size();
  }
  return 0;
}

std::vector<int> Mesh::group(Dimension dimension, int rank) const {
  const int id = group_id(dimension, rank);
  std::vector<int> members;
  for (int other = 0; other < size(); ++other) {
    if (group_id(dimension, other) == id) members.push_back(other);
  }
  return members;
}

int Mesh::index_in_group(Dimension dimension, int rank) const {
  const int id = group_id(dimension, rank);
  int index = 0;
  for (int other = 0; other < rank; ++other) index += group_id(dimension, other) == id ? 1 : 0;
  return index;
}

std::vector<std::vector<int>> Mesh::groups(Dimension dimension) const {
  std::vector<std::vector<int>> all;
  std::vector<int> place(static_cast<size_t>(size()), -1);  // of the group, by its first member
  for (int rank = 0; rank < size(); ++rank) {
    int& at = place[static_cast<size_t>(group_id(dimension, rank))];
    if (at < 0) {
      at = static_cast<int>(all.size());
      all.emplace_back();
    }
    all[static_cast<size_t>(at)].push_back(rank);
  }
  return all;
}

}  // namespace trireme::cluster
