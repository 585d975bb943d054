#include "binding/regions.h"

#include <algorithm>

namespace lowrank_attention {

void Regions::close(Region& region) { open_.erase(std::find(open_.begin(), open_.end(), &region)); }

Index Regions::places() const {
  Index places = 0;
  for (const Region* region : open_) places += placesOf(*region);
  return places;
}

bool Regions::join(Helper& helper) {
  Region* fewest = nullptr;
  for (Region* region : open_) {
    if (placesOf(*region) > 0 && (fewest == nullptr || region->staying < fewest->staying)) fewest = region;
  }
  if (fewest == nullptr) return false;
  // The lowest index that is free: where the list, which is in order, has its first gap.
  Index worker = 1;
  Helper** place = &fewest->helpers;
  for (; *place != nullptr && (*place)->worker == worker; place = &(*place)->next) ++worker;
  helper = {fewest, worker, 0, *place};
  *place = &helper;
  ++fewest->staying;
  fewest->present.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool Regions::leave(Helper& helper) {
  Region& region = *helper.region;
  Helper** place = &region.helpers;
  while (*place != &helper) place = &(*place)->next;
  *place = helper.next;
  if (helper.leave == 0) {
    // Not called away, so it came to the end of the work.
    region.exhausted = true;
    --region.staying;
  }
  return region.present.fetch_sub(1, std::memory_order_release) == 1;
}

bool Regions::recall(Index fromAtLeast) {
  Region* most = nullptr;
  for (Region* region : open_) {
    if (most == nullptr || region->staying > most->staying) most = region;
  }
  if (most == nullptr || most->staying < std::max<Index>(fromAtLeast, 2)) return false;
  Helper* helper = most->helpers;
  while (helper->leave != 0) helper = helper->next;
  __atomic_store_n(&helper->leave, 1, __ATOMIC_RELAXED);
  --most->staying;
  return true;
}

}  // namespace lowrank_attention
