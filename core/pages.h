// The memory of rows that grow one by one: pages that are never moved, so that growing copies nothing and a copy of the
// list, a fork, shares all pages of its prefix (Kwon et al. 2023, arXiv 2309.06180, section 4). What a page holds of
// its rows is the matter of who writes them.
#ifndef LOWRANK_ATTENTION_CORE_PAGES_H_
#define LOWRANK_ATTENTION_CORE_PAGES_H_

#include <memory>
#include <vector>

#include "core/full.h"

namespace lowrank_attention {

class Pages {
 public:
  // Rows of a page: a multiple of kKeyTile, so that no tile crosses pages.
  static constexpr Index kRows = kKeyTile;

  // `rowBytes` is what the rows of a page take, a multiple of 64 above 0.
  explicit Pages(Index rowBytes);
  // A fork. What is left of the other's mapping stays the other's, so that no place is handed out twice.
  Pages(const Pages& other)
      : rowBytes_(other.rowBytes_), perGroup_(other.perGroup_), length_(other.length_), pages_(other.pages_) {}
  Pages& operator=(const Pages&) = delete;

  Index length() const { return length_; }
  // Bytes of all pages held, and of those that another fork or a running call holds too.
  std::size_t bytes() const { return pages_.size() * pageBytes(); }
  std::size_t sharedBytes() const;

  Index count() const { return static_cast<Index>(pages_.size()); }
  std::byte* at(Index page) const { return pages_[static_cast<std::size_t>(page)].get(); }

  // Makes room for `count` more rows, for the caller to write. A last page that is shared is copied first. False, with
  // nothing changed, if memory ran out.
  bool extend(Index count);
  // Keeps the first `length` rows and gives back the pages beyond.
  void truncate(Index length);
  // Appends a share in each page to `owners`. It keeps the pages as they are: a later `extend` whose rows would be
  // written into one copies it.
  void share(std::vector<std::shared_ptr<const void>>* owners) const;

 private:
  using Page = std::shared_ptr<std::byte>;

  // One more page, the first of so many that are wanted now.
  Page newPage(std::size_t wanted);
  std::size_t groupBytes() const;
  // Bytes of memory of a page: those of its rows and, where it is mapped, its part of what fills up the system's last
  // page.
  std::size_t pageBytes() const;

  std::size_t rowBytes_;
  // Pages that share what fills up the system's last page, one after another; 0: they are too small to be mapped.
  std::size_t perGroup_ = 0;
  Index length_ = 0;
  std::vector<Page> pages_;
  // The mapping of which `taken_` places are handed out and `left_` are not.
  std::shared_ptr<std::byte> mapping_;
  std::size_t taken_ = 0;
  std::size_t left_ = 0;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_PAGES_H_
